// The weights of the search: Sphinx's own, but for `score`. Pages that teach come before the reference and the project's own pages, and a
// section whose title is the query comes first.
var Scorer = {
  score: ([page, , , , score, , kind]) => {
    const teaches = !/^(api\/|changelog|contracts|contributing|security)/.test(page);
    if (kind === "title") return score + 2;
    return kind === "text" && teaches ? score + 1 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
