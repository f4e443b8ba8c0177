// Edge attention, on edges sorted by destination, and that sort. Rows are read in the order of the edges: those of edges ahead are fetched
// into the cache meanwhile, since they lie anywhere. See mea_graph/ops/edge/native.py.
#include "lanes.h"

#include <type_traits>

namespace {

constexpr Index AHEAD = 16;             // edges
constexpr Index TASK = 1024;            // edges of a task, about, whose numbers stay in the cache
constexpr Index CHUNK = 64;             // edges whose sum is taken apart: a sum over very many would lose digits
constexpr Index GROUP = 8;              // dot products whose lanes are summed together
constexpr Index FOR_A_THREAD = 1 << 21; // numbers of rows: ten times the time in which a thread starts

template <class T> struct Call {
    Rows<const T> x, grad_y;            // channels lie side by side
    const T *score_dst, *score_src;     // (N, H)
    T* weights;                         // (E, H), in the order in which the edges were given
    const T* grad_weights;              // the same, or null
    T* slope;                           // (E, H), sorted: gradients of weights, then of logits
    T *y, *grad_x;                      // (N, H, C)
    T *grad_dst, *grad_src;             // (N, H)
    const void *source, *target, *order, *start, *by_source, *source_start;  // the fields of InEdges
    Index wide;                         // whether these are of 64 bits, not 32
    Index sums;                         // whether y has a gradient; if not, slope and grad_x are zeros
    Index foreign;                      // whether the edges may have been sorted by hand
    Index edges, sources, targets, heads, channels, threads;
    Index* fault;

    Index at(const void* index, Index k) const { return wide ? static_cast<const int64_t*>(index)[k] : static_cast<const int32_t*>(index)[k]; }
};

// The edges of a few nodes that follow each other, and numbers by head, then by edge.
template <class T> struct Memory {
    std::vector<Index> node;   // at the other end of each edge, and of some edges more that are fetched in vain
    std::vector<Index> place;  // in the order in which the edges were given
    std::vector<Index> bound;  // where the edges of each node begin
    Array<T> weight, logit, slope;
    Index first, nodes, from, count, padded;

    template <class Other> void take(const Call<T>& c, const void* start, Index first_node, Index last_node, Other other) {
        first = first_node, nodes = last_node - first_node;
        bound.resize(nodes + 1);
        from = c.at(start, first);
        for (Index i = 0; i <= nodes; ++i) bound[i] = c.at(start, first + i) - from;
        count = bound[nodes];
        padded = (count + 4 * LANES<T> - 1) / (4 * LANES<T>) * (4 * LANES<T>);
        node.resize(count + AHEAD);
        place.resize(count);
        for (Index k = 0; k < count; ++k) other(from + k, node[k], place[k]);
        std::fill_n(&node[count], AHEAD, count ? node[count - 1] : 0);
        for (Array<T>* array : {&weight, &logit, &slope}) array->resize(c.heads * padded);
    }

    void take_in_edges(const Call<T>& c, Index first_node, Index last_node) {
        take(c, c.start, first_node, last_node, [&](Index k, Index& node, Index& place) {
            node = c.at(c.source, k);
            place = c.at(c.order, k);
        });
    }

    // a_i + b_j, before the GELU
    void take_logits(const Call<T>& c) {
        for (Index i = 0; i < nodes; ++i) {
            const T* dst = c.score_dst + (first + i) * c.heads;
            for (Index k = bound[i]; k < bound[i + 1]; ++k) {
                const T* src = c.score_src + node[k] * c.heads;
                for (Index h = 0; h < c.heads; ++h) logit[h * padded + k] = src[h] + dst[h];
            }
        }
    }
};

// Does `work(first node, last node, memory)` for all nodes, a few at a time.
template <class T, class Work> void each_few(const Call<T>& c, Index nodes, Work work) {
    const Index few = std::clamp<Index>(TASK * nodes / std::max<Index>(c.edges, 1), 1, TASK);
    const Index threads = std::min(c.threads, 1 + c.edges * c.heads * (c.channels + 16) / FOR_A_THREAD);
    each<Memory<T>>((nodes + few - 1) / few, threads, [&](Index task, Memory<T>& m) {
        work(task * few, std::min(nodes, (task + 1) * few), m);
    });
}

// Of N vectors: the probability that a standard normal variable is below x. An infinite x must give exactly 0 or 1, as torch's does.
template <class T, int N> inline __attribute__((always_inline)) void normal(const V<T>* x, V<T>* below) {
    constexpr T far = sizeof(T) == 4 ? 14 : 40;  // nothing is left of the tail
    V<T> t[N];
    EACH(N) t[n] = x[n] < 0 ? -x[n] : x[n];
    normal_tail<N>(t, below);
    EACH(N) below[n] = t[n] > far ? V<T>{} : below[n];
    EACH(N) below[n] = x[n] < 0 ? below[n] : T(1) - below[n];
}

template <class T> void gelu(const T* from, Index count, T* to) {
    constexpr int N = 4, L = LANES<T>;
    for (Index k = 0; k < count; k += N * L) {
        V<T> x[N], p[N];
        EACH(N) x[n] = load(from + k + n * L);
        normal<T, N>(x, p);
        EACH(N) store<T>(to + k + n * L, x[n] * p[n]);
    }
}

// Multiplies `slope` by the derivative of the GELU.
template <class T> void gelu_backward(const T* from, Index count, T* slope) {
    constexpr int N = 4, L = LANES<T>;
    for (Index k = 0; k < count; k += N * L) {
        V<T> x[N], p[N], density[N];
        EACH(N) x[n] = load(from + k + n * L);
        EACH(N) density[n] = x[n] * x[n] * T(-0.7213475204444817);  // of the standard normal variable, but for a factor
        exp2<T, N>(density);
        EACH(N) density[n] = x[n] * x[n] > T(sizeof(T) == 4 ? 196 : 1600) ? V<T>{} : density[n];
        normal<T, N>(x, p);
        EACH(N) store<T>(slope + k + n * L, load(slope + k + n * L) * (p[n] + x[n] * density[n] * T(0.3989422804014327)));
    }
}

template <class T> void exponential(T* x, Index count) {
    constexpr int N = 4, L = LANES<T>;
    for (Index k = 0; k < count; k += N * L) {
        V<T> v[N];
        I<T> tiny[N];
        EACH(N) v[n] = load(x + k + n * L) * T(1.4426950408889634);
        EACH(N) tiny[n] = v[n] < Lanes<T>::least;
        exp2<T, N>(v);
        EACH(N) store<T>(x + k + n * L, keep<T>(~tiny[n], v[n]));
    }
}

template <class T> void softmax(T* x, const std::vector<Index>& bound, Index padded) {
    const Index nodes = bound.size() - 1;
    for (Index i = 0; i < nodes; ++i) {
        T top = std::numeric_limits<T>::lowest();
        for (Index k = bound[i]; k < bound[i + 1]; ++k) top = x[k] > top ? x[k] : top;
        for (Index k = bound[i]; k < bound[i + 1]; ++k) x[k] -= top;
    }
    exponential(x, padded);
    for (Index i = 0; i < nodes; ++i) {
        double total = 0;
        for (Index k = bound[i]; k < bound[i + 1]; ++k) total += x[k];
        for (Index k = bound[i]; k < bound[i + 1]; ++k) x[k] /= T(total);
    }
}

// N vectors of a row, of which the last may end early, in lanes that are zero from then on.
template <class T, int N, bool WHOLE> struct Tile {
    static constexpr int L = LANES<T>;
    Index rest;     // lanes of the last vector
    const T* end;   // of the memory that may be read
    I<T> real;

    Tile(Index channels, const T* end) : rest(channels - (N - 1) * L), end(end) { real = count_up<T>() < (typename Lanes<T>::Int)rest; }

    void get(const T* from, V<T>* row) const {
        EACH(N - (WHOLE ? 0 : 1)) row[n] = load(from + n * L);
        if (WHOLE) return;
        from += (N - 1) * L;
        row[N - 1] = V<T>{};
        if (from + L <= end) row[N - 1] = keep<T>(real, load(from));
        else std::memcpy(&row[N - 1], from, rest * sizeof(T));
    }

    void put(T* to, const V<T>* row) const {
        EACH(N - (WHOLE ? 0 : 1)) store<T>(to + n * L, row[n]);
        if (!WHOLE) std::memcpy(to + (N - 1) * L, &row[N - 1], rest * sizeof(T));
    }

    static void fetch(const T* from) {
        for (int n = 0; n < N * BYTES; n += 64) __builtin_prefetch(reinterpret_cast<const char*>(from) + n);
    }
};

// Does `work(tile, first channel)` for all channels, as many at once as registers hold.
template <class T, class Work> void each_tile(Index channels, const T* end, Work work) {
    constexpr int L = LANES<T>;
    Index d = 0;
    for (; channels - d >= 8 * L; d += 8 * L) work(Tile<T, 8, true>(8 * L, end), d);
    while (d < channels) {
        const Index left = channels - d, vectors = std::min<Index>((left + L - 1) / L, 4), now = std::min<Index>(left, vectors * L);
        const bool whole = now == vectors * L;
        switch (2 * vectors + whole) {
            case 2: work(Tile<T, 1, false>(now, end), d); break;
            case 3: work(Tile<T, 1, true>(now, end), d); break;
            case 4: work(Tile<T, 2, false>(now, end), d); break;
            case 5: work(Tile<T, 2, true>(now, end), d); break;
            case 6: work(Tile<T, 3, false>(now, end), d); break;
            case 7: work(Tile<T, 3, true>(now, end), d); break;
            case 8: work(Tile<T, 4, false>(now, end), d); break;
            case 9: work(Tile<T, 4, true>(now, end), d); break;
        }
        d += now;
    }
}

template <class T> const T* end_of(const Rows<const T>& rows, Index nodes, const Call<T>& c) {
    return nodes ? &rows.at(nodes - 1, c.heads - 1, c.channels) : rows.data;
}

// The sum of weight[k] * rows[node[k]].
template <class T, int N, bool WHOLE>
inline void weighted_sum(const Tile<T, N, WHOLE>& tile, const T* rows, Index stride, const Index* node, const T* weight, Index count, T* to) {
    V<T> total[N] = {};
    for (Index from = 0; from < count; from += CHUNK) {
        V<T> part[N] = {}, row[N];
        for (Index k = from; k < std::min(from + CHUNK, count); ++k) {
            tile.fetch(rows + node[k + AHEAD] * stride);
            tile.get(rows + node[k] * stride, row);
            EACH(N) part[n] += weight[k] * row[n];
        }
        EACH(N) total[n] += part[n];
    }
    tile.put(to, total);
}

// As `weighted_sum`; adds the products of `own` and rows[node[k]] to dot[k].
template <class T, int N, bool WHOLE>
inline void weighted_sum_and_products(
    const Tile<T, N, WHOLE>& tile, const V<T>* own, const T* rows, Index stride, const Index* node, const T* weight, Index count, T* dot, T* to
) {
    V<T> total[N] = {};
    for (Index from = 0; from < count; from += CHUNK) {
        V<T> part[N] = {}, row[N];
        for (Index group = from; group < std::min(from + CHUNK, count); group += GROUP) {
            V<T> products[GROUP] = {};
            T found[GROUP];
            const Index members = std::min(count - group, GROUP);
            for (Index k = 0; k < members; ++k) {
                tile.fetch(rows + node[group + k + AHEAD] * stride);
                tile.get(rows + node[group + k] * stride, row);
                EACH(N) part[n] += weight[group + k] * row[n];
                V<T> product = own[0] * row[0];
#pragma GCC unroll 8
                for (int n = 1; n < N; ++n) product += own[n] * row[n];
                products[k] = product;
            }
            sums<T, GROUP>(products, found);
            for (Index k = 0; k < members; ++k) dot[group + k] += found[k];
        }
        EACH(N) total[n] += part[n];
    }
    tile.put(to, total);
}

template <class T> void forward(const Call<T>& c) {
    each_few(c, c.targets, [&](Index first, Index last, Memory<T>& m) {
        m.take_in_edges(c, first, last);
        m.take_logits(c);
        for (Index h = 0; h < c.heads; ++h) {
            T* weight = &m.weight[h * m.padded];
            gelu(&m.logit[h * m.padded], m.padded, weight);
            softmax(weight, m.bound, m.padded);
        }
        for (Index k = 0; k < m.count; ++k)
            for (Index h = 0; h < c.heads; ++h) c.weights[m.place[k] * c.heads + h] = m.weight[h * m.padded + k];
        each_tile(c.channels, end_of(c.x, c.sources, c), [&](auto tile, Index d) {
            for (Index i = 0; i < m.nodes; ++i)
                for (Index h = 0; h < c.heads; ++h) {
                    const Index from = m.bound[i];
                    weighted_sum(tile, &c.x.at(0, h, d), c.x.row, &m.node[from], &m.weight[h * m.padded + from], m.bound[i + 1] - from,
                                 c.y + ((first + i) * c.heads + h) * c.channels + d);
                }
        });
    });
}

// The gradients of x, and those of the weights as far as they come from y.
template <class T> void backward_by_source(const Call<T>& c) {
    each_few(c, c.sources, [&](Index first, Index last, Memory<T>& m) {
        m.take(c, c.source_start, first, last, [&](Index k, Index& node, Index& place) {
            const Index edge = c.at(c.by_source, k);
            node = c.at(c.target, edge);
            place = c.at(c.order, edge);
        });
        for (Index k = 0; k < m.count; ++k)
            for (Index h = 0; h < c.heads; ++h) m.weight[h * m.padded + k] = c.weights[m.place[k] * c.heads + h];
        std::fill(m.slope.begin(), m.slope.end(), T(0));
        each_tile(c.channels, end_of(c.grad_y, c.targets, c), [&](auto tile, Index d) {
            auto of_x = tile;
            of_x.end = end_of(c.x, c.sources, c);
            for (Index i = 0; i < m.nodes; ++i)
                for (Index h = 0; h < c.heads; ++h) {
                    const Index from = m.bound[i], at = h * m.padded + from;
                    V<T> own[8];
                    of_x.get(&c.x.at(first + i, h, d), own);
                    weighted_sum_and_products(tile, own, &c.grad_y.at(0, h, d), c.grad_y.row, &m.node[from], &m.weight[at],
                                              m.bound[i + 1] - from, &m.slope[at], c.grad_x + ((first + i) * c.heads + h) * c.channels + d);
                }
        });
        for (Index k = 0; k < m.count; ++k)
            for (Index h = 0; h < c.heads; ++h) c.slope[c.at(c.by_source, m.from + k) * c.heads + h] = m.slope[h * m.padded + k];
    });
}

// The gradients of the logits, and their sums by destination.
template <class T> void backward_by_target(const Call<T>& c) {
    each_few(c, c.targets, [&](Index first, Index last, Memory<T>& m) {
        m.take_in_edges(c, first, last);
        m.take_logits(c);
        for (Index k = 0; k < m.count; ++k)
            for (Index h = 0; h < c.heads; ++h) {
                const Index at = h * m.padded + k, given = m.place[k] * c.heads + h;
                m.weight[at] = c.weights[given];
                m.slope[at] = c.slope[(m.from + k) * c.heads + h] + (c.grad_weights ? c.grad_weights[given] : T(0));
            }
        for (Index h = 0; h < c.heads; ++h) {
            T *slope = &m.slope[h * m.padded], *weight = &m.weight[h * m.padded];
            for (Index i = 0; i < m.nodes; ++i) {
                double mean = 0;
                for (Index k = m.bound[i]; k < m.bound[i + 1]; ++k) mean += double(weight[k]) * double(slope[k]);
                for (Index k = m.bound[i]; k < m.bound[i + 1]; ++k) slope[k] = weight[k] * (slope[k] - T(mean));
            }
            gelu_backward(&m.logit[h * m.padded], m.padded, slope);
            for (Index i = 0; i < m.nodes; ++i) {
                double total = 0;
                for (Index k = m.bound[i]; k < m.bound[i + 1]; ++k) total += slope[k];
                c.grad_dst[(first + i) * c.heads + h] = T(total);
            }
        }
        for (Index k = 0; k < m.count; ++k)
            for (Index h = 0; h < c.heads; ++h) c.slope[(m.from + k) * c.heads + h] = m.slope[h * m.padded + k];
    });
}

// The sums of the gradients of the logits by source.
template <class T> void sum_by_source(const Call<T>& c) {
    each_few(c, c.sources, [&](Index first, Index last, Memory<T>&) {
        for (Index j = first; j < last; ++j)
            for (Index h = 0; h < c.heads; ++h) {
                double total = 0;
                for (Index k = c.at(c.source_start, j); k < c.at(c.source_start, j + 1); ++k) total += c.slope[c.at(c.by_source, k) * c.heads + h];
                c.grad_src[j * c.heads + h] = T(total);
            }
    });
}

// Whether `start` divides all edges among the nodes, in their order.
template <class E> bool divides(const E* start, Index nodes, Index edges) {
    bool sound = start[0] == 0 && start[nodes] == edges;
    for (Index i = 0; i < nodes; ++i) sound &= start[i] <= start[i + 1];
    return sound;
}

template <class E> bool is_below(const E* index, Index count, Index size) {
    bool sound = true;
    for (Index k = 0; k < count; ++k) sound &= std::make_unsigned_t<E>(index[k]) < std::make_unsigned_t<E>(size);
    return sound;
}

// Whether no number stands there twice; all are in range.
template <class E> bool is_each_once(const E* index, Index count) {
    std::vector<unsigned char> seen(count);
    bool sound = true;
    for (Index k = 0; k < count; ++k) sound &= !seen[index[k]], seen[index[k]] = 1;
    return sound;
}

enum Field { NONE, SOURCE, TARGET, ORDER, START, BY_SOURCE, SOURCE_START };  // of InEdges

// The first field whose numbers lead out of memory, or whose edges are not sorted by destination.
template <class E, class T> Field unsound_field(const Call<T>& c) {
    auto start = static_cast<const E*>(c.start), target = static_cast<const E*>(c.target), by_source = static_cast<const E*>(c.by_source);
    if (!divides(start, c.targets, c.edges)) return START;
    if (!is_below(static_cast<const E*>(c.source), c.edges, c.sources)) return SOURCE;
    if (!is_below(static_cast<const E*>(c.order), c.edges, c.edges)) return ORDER;
    bool sound = true;
    for (Index i = 0; i < c.targets; ++i)
        for (Index k = start[i]; k < start[i + 1]; ++k) sound &= target[k] == i;
    if (!sound) return TARGET;
    if (!by_source) return NONE;
    if (!is_below(by_source, c.edges, c.edges)) return BY_SOURCE;
    return divides(static_cast<const E*>(c.source_start), c.sources, c.edges) ? NONE : SOURCE_START;
}

// The first field of sound ones that would leave results as memory was, or sum over the wrong edges.
template <class E, class T> __attribute__((noinline)) Field unsorted_field(const Call<T>& c) {
    auto source = static_cast<const E*>(c.source), by_source = static_cast<const E*>(c.by_source);
    auto source_start = static_cast<const E*>(c.source_start);
    if (!is_each_once(static_cast<const E*>(c.order), c.edges)) return ORDER;
    bool sound = is_each_once(by_source, c.edges);
    for (Index j = 0; j < c.sources; ++j)
        for (Index k = source_start[j]; k < source_start[j + 1]; ++k) sound &= source[by_source[k]] == j;
    return sound ? NONE : BY_SOURCE;
}

template <class E, class T> Field wrong_field(const Call<T>& c) {
    const Field field = unsound_field<E>(c);
    return field == NONE && c.foreign ? unsorted_field<E>(c) : field;
}

template <class T> bool is_refused(const Call<T>& c) {
    *c.fault = c.wide ? wrong_field<int64_t>(c) : wrong_field<int32_t>(c);
    return *c.fault;
}

template <class T> void run_forward(const Call<T>& c) {
    if (!is_refused(c)) forward(c);
}

template <class T> void run_backward(const Call<T>& c) {
    if (is_refused(c)) return;
    if (c.sums) backward_by_source(c);
    backward_by_target(c);
    sum_by_source(c);
}

// A stable sort of edges by one of their ends.
struct Sort {
    const void *key, *other;   // the ends to sort by, and the other ones or null
    Index key_step, other_step, wide, edges, keys, others;
    void *order, *start;       // which edge is the k-th; where the edges of each node begin
    void *sorted_key, *sorted_other;  // null without `other`
    Index wide_result;
    Index* fault;              // the number of the first edge that leads to no node, counted from 1
};

template <class In, class Out> void sort(const Sort& s) {
    auto key = static_cast<const In*>(s.key), other = static_cast<const In*>(s.other);
    auto order = static_cast<Out*>(s.order), start = static_cast<Out*>(s.start);
    auto sorted_key = static_cast<Out*>(s.sorted_key), sorted_other = static_cast<Out*>(s.sorted_other);
    std::fill_n(start, s.keys + 1, Out(0));
    for (Index k = 0; k < s.edges; ++k) {
        const In at = key[k * s.key_step];
        if (uint64_t(at) >= uint64_t(s.keys) || (other && uint64_t(other[k * s.other_step]) >= uint64_t(s.others))) {
            *s.fault = k + 1;
            return;
        }
        ++start[at + 1];
    }
    for (Index i = 0; i < s.keys; ++i) start[i + 1] += start[i];
    std::vector<Out> next(start, start + s.keys);
    for (Index k = 0; k < s.edges; ++k) {
        const Out at = next[key[k * s.key_step]]++;
        order[at] = Out(k);
        if (other) sorted_other[at] = Out(other[k * s.other_step]);
    }
    if (other)
        for (Index i = 0; i < s.keys; ++i) std::fill(sorted_key + start[i], sorted_key + start[i + 1], Out(i));
}

void run_sort(const Sort& s) {
    if (s.wide) s.wide_result ? sort<int64_t, int64_t>(s) : sort<int64_t, int32_t>(s);
    else s.wide_result ? sort<int32_t, int64_t>(s) : sort<int32_t, int32_t>(s);
}

}  // namespace

extern "C" {
void edge_forward_float(const void* call) { run_forward(*static_cast<const Call<float>*>(call)); }
void edge_forward_double(const void* call) { run_forward(*static_cast<const Call<double>*>(call)); }
void edge_backward_float(const void* call) { run_backward(*static_cast<const Call<float>*>(call)); }
void edge_backward_double(const void* call) { run_backward(*static_cast<const Call<double>*>(call)); }
void edge_sort_float(const void* call) { run_sort(*static_cast<const Sort*>(call)); }  // integers alone; the name is the caller's custom
}
