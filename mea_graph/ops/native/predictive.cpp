// Predictive attention. Keys lie along the lanes. A sample is computed row by row: the prior's logits of three rows are kept, and
// convolved into a row of predictions; see mea_graph/ops/predictive/cpu.py for the formulas. Base 2 throughout.
#include "lanes.h"

namespace {

constexpr double LOG2E = 1.4426950408889634;
constexpr float STEEP = 60;  // powers of two of logits up to this size need no shift
constexpr int OUT = 4;       // heads whose convolution is computed at once
constexpr int WIDE = 4;      // vectors of columns that are
constexpr Index BAND = 1024;  // numbers of a head: rows of as many are computed back before what they add to the weights' gradient

template <class T> struct Call {
    Rows<T> query, key, value, prior_query, prior_key, out, grad;
    Rows<T> d_query, d_key, d_value, d_prior_query, d_prior_key;
    const T *weight, *bias;  // (K, K, 3, 3), (K,)
    T* statistics;           // (N, K, 2): log2 of the sums of both softmaxes
    T* d_parameters;         // (B, K K 9 + K)
    const Index *start, *length;  // (B,)
    const Index *begin, *end;     // (N,), or null
    Index samples, heads, width, value_width, prior_width, threads;
};

// A channel a row, with room on both sides that stays zero.
template <class T> struct Sheet {
    static constexpr int L = LANES<T>;
    Array<T> memory;
    Index stride = 0;

    void clear(Index channels, Index padded) {
        stride = padded + 2 * L;
        memory.assign(channels * stride, T(0));
    }
    T* operator[](Index channel) { return memory.data() + channel * stride + L; }

    void take(const Rows<T>& rows, Index start, Index steps, Index heads, Index width, Index wide, Index padded) {
        clear(heads * wide, padded);
        for (Index h = 0; h < heads; ++h)
            for (Index d = 0; d < width; ++d) rows.get(start, h, d, steps, 1, (*this)[h * wide + d]);
    }
    void put(const Rows<T>& rows, Index start, Index steps, Index heads, Index width, Index wide, T scale) {
        for (Index h = 0; h < heads; ++h)
            for (Index d = 0; d < width; ++d) rows.put(start, h, d, steps, scale, (*this)[h * wide + d]);
    }
};

// (steps, heads, wide)
template <class T> struct Steps {
    Array<T> memory;
    Index heads, wide;

    void clear(Index steps, Index heads, Index wide) {
        this->heads = heads;
        this->wide = wide;
        memory.assign(steps * heads * wide, T(0));
    }
    T* at(Index i, Index h) { return memory.data() + (i * heads + h) * wide; }

    void take(const Rows<T>& rows, Index start, Index steps, Index heads, Index width, Index wide, T scale) {
        clear(steps, heads, wide);
        for (Index i = 0; i < steps; ++i)
            for (Index h = 0; h < heads; ++h)
                for (Index d = 0; d < width; ++d) at(i, h)[d] = rows.at(start + i, h, d) * scale;
    }
    void put(const Rows<T>& rows, Index start, Index steps, Index heads, Index width, T scale) {
        for (Index i = 0; i < steps; ++i)
            for (Index h = 0; h < heads; ++h)
                for (Index d = 0; d < width; ++d) rows.at(start + i, h, d) = at(i, h)[d] * scale;
    }
};

// The W numbers of a head at one step, each in all lanes: in registers where W is known, and read where they are used where it is 0.
template <class T, int W> struct Channels {
    V<T> held[W];
    explicit Channels(const T* from) {
        for (int d = 0; d < W; ++d) held[d] = all<T>(from[d]);
    }
    V<T> operator[](Index d) const { return held[d]; }
};
template <class T> struct Channels<T, 0> {
    const T* from;
    explicit Channels(const T* from) : from(from) {}
    V<T> operator[](Index d) const { return all<T>(from[d]); }
};

// W sums over columns, likewise; `memory` has room for them where W is 0.
template <class T, int W> struct Sums {
    V<T> held[W] = {};
    Sums(V<T>*, Index) {}
    V<T>& operator[](Index d) { return held[d]; }
    void put(T* to) { sums<T, W>(held, to); }
};
template <class T> struct Sums<T, 0> {
    V<T>* held;
    Index wide;
    Sums(V<T>* memory, Index wide) : held(memory), wide(wide) { std::fill(held, held + wide, V<T>{}); }
    V<T>& operator[](Index d) { return held[d]; }
    void put(T* to) {
        for (Index d = 0; d < wide; ++d) to[d] = sum<T>(held[d]);
    }
};

struct Range {
    Index from, to;  // columns, whole vectors
};

// Does `work(N, j)` for the columns of a range, N vectors of them from j on.
template <class T, class Work> inline __attribute__((always_inline)) void over(Range range, Work work) {
    constexpr int L = LANES<T>;
    Index j = range.from;
    if constexpr (sizeof(T) == 4) {  // float64 is for comparisons: one at a time is enough, and compiles faster
        for (; j + 4 * L <= range.to; j += 4 * L) work(std::integral_constant<int, 4>{}, j);
        if (j + 2 * L <= range.to) work(std::integral_constant<int, 2>{}, j), j += 2 * L;
    }
    for (; j < range.to; j += L) work(std::integral_constant<int, 1>{}, j);
}
#define COLUMNS [&](auto count, Index j) __attribute__((always_inline))

// out[o] = from[o] + sum over h, x, y of weight[h][x][y][o] rows[x][h] shifted by y, for OUT rows `stride` apart.
template <class T, int N>
void convolve_block(const T* weight, T* const rows[3], Index row_stride, Index heads, Index j, const T* from, T* out, Index stride) {
    constexpr int L = LANES<T>;
    V<T> total[OUT][N];
    for (int o = 0; o < OUT; ++o)
        for (int n = 0; n < N; ++n) total[o][n] = all<T>(from[o]);
    for (Index h = 0; h < heads; ++h)
        for (int x = 0; x < 3; ++x) {
            const T* row = rows[x] + h * row_stride + j;
            for (int y = -1; y < 2; ++y, weight += OUT) {
                V<T> seen[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) seen[n] = load(row + y + n * L);
#pragma GCC unroll 4
                for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n) total[o][n] += weight[o] * seen[n];
            }
        }
    for (int o = 0; o < OUT; ++o)
        for (int n = 0; n < N; ++n) store<T>(out + o * stride + j + n * L, total[o][n]);
}

// Weights by blocks of OUT results: [block][h][x][y][OUT], zeros beyond the last head.
template <class T> struct Kernel {
    std::vector<T> weight, bias;
    Index heads;

    Kernel(const T* given, const T* from, Index heads, bool transposed) : heads(heads) {
        const Index blocks = (heads + OUT - 1) / OUT;
        weight.assign(blocks * heads * 9 * OUT, T(0));
        bias.assign(blocks * OUT, T(0));
        for (Index o = 0; o < heads; ++o) {
            if (from) bias[o] = from[o];
            for (Index h = 0; h < heads; ++h)
                for (int x = 0; x < 3; ++x)
                    for (int y = 0; y < 3; ++y) {
                        const Index at = transposed ? ((h * heads + o) * 3 + 2 - x) * 3 + 2 - y : ((o * heads + h) * 3 + x) * 3 + y;
                        weight[(((o / OUT * heads + h) * 3 + x) * 3 + y) * OUT + o % OUT] = given[at];
                    }
        }
    }

    void convolve(T* const rows[3], Index row_stride, T* out, Index stride, Range range) const {
        constexpr int L = LANES<T>;
        for (Index o = 0; o < heads; o += OUT) {
            const T *w = &weight[o * heads * 9], *from = &bias[o];
            T* to = out + o * stride;
            Index j = range.from;
            for (; j + WIDE * L <= range.to; j += WIDE * L) convolve_block<T, WIDE>(w, rows, row_stride, heads, j, from, to, stride);
            switch ((range.to - j) / L) {
                case 3: convolve_block<T, 3>(w, rows, row_stride, heads, j, from, to, stride); break;
                case 2: convolve_block<T, 2>(w, rows, row_stride, heads, j, from, to, stride); break;
                case 1: convolve_block<T, 1>(w, rows, row_stride, heads, j, from, to, stride); break;
            }
        }
    }
};

template <class T, int W> struct Memory {
    static constexpr int L = LANES<T>;
    Steps<T> q, q_prior, g, dq, dq_prior;
    Sheet<T> k, v, k_prior, dk, dv, dk_prior, predicted, p, z, d_logits;
    std::vector<Sheet<T>> logits, slopes;  // of the rows of a band and the two around it, in turn
    std::vector<T*> logit_rows, slope_rows;
    Array<T> out;
    std::vector<I<T>> heard;
    std::vector<V<T>> dw, db, sums;
    std::vector<Range> ranges;
    Index steps, padded, start, widest, band;

    Index wide() const { return W ? W : widest; }

    void take(const Call<T>& c, Index b, bool backward) {
        steps = c.length[b];
        start = c.start[b];
        padded = (steps + L - 1) / L * L;
        widest = std::max({c.width, c.value_width, c.prior_width});
        band = backward ? std::clamp<Index>(BAND / padded, 1, steps) : 1;
        const Index block = (c.heads + OUT - 1) / OUT * OUT;
        q.take(c.query, start, steps, c.heads, c.width, wide(), T(LOG2E / std::sqrt(double(c.width))));
        k.take(c.key, start, steps, c.heads, c.width, wide(), padded);
        v.take(c.value, start, steps, c.heads, c.value_width, wide(), padded);
        q_prior.take(c.prior_query, start, steps, c.heads, c.prior_width, wide(), T(1 / std::sqrt(double(c.prior_width))));
        k_prior.take(c.prior_key, start, steps, c.heads, c.prior_width, wide(), padded);
        logits.resize(band + 2);
        for (auto& row : logits) row.clear(c.heads, padded);
        predicted.clear(block, padded);
        p.clear(1, padded);
        z.clear(1, padded);
        out.resize(wide());
        heard.assign(padded / L, I<T>{});
        sums.resize(wide());
        ranges.clear();
        for (Index i = 0; i < steps; ++i) ranges.push_back(columns(c, i));
        if (!c.begin) hear(c, 0);
        if (!backward) return;
        g.take(c.grad, start, steps, c.heads, c.value_width, wide(), 1);
        slopes.resize(band + 2);
        for (auto& row : slopes) row.clear(block, padded);
        d_logits.clear(block, padded);
        dq.clear(steps, c.heads, wide());
        dk.clear(c.heads * wide(), padded);
        dv.clear(c.heads * wide(), padded);
        dq_prior.clear(steps, c.heads, wide());
        dk_prior.clear(c.heads * wide(), padded);
        dw.assign(block * c.heads * 9, V<T>{});
        db.assign(c.heads, V<T>{});
    }

    Index low(const Call<T>& c, Index i) const { return c.begin ? std::clamp<Index>(c.begin[start + i] - start, 0, steps) : 0; }
    Index high(const Call<T>& c, Index i) const { return c.begin ? std::clamp<Index>(c.end[start + i] - start, 0, steps) : steps; }

    Range columns(const Call<T>& c, Index i) const {
        const Index a = low(c, i), e = high(c, i);
        return a < e ? Range{a / L * L, (e + L - 1) / L * L} : Range{0, 0};
    }
    // All columns that rows first to last hear, and `more` vectors on both sides.
    Range around(Index first, Index last, Index more) const {
        Range hull{padded, 0};
        for (Index i = std::max<Index>(first, 0); i <= std::min(last, steps - 1); ++i)
            if (ranges[i].from < ranges[i].to) hull = {std::min(hull.from, ranges[i].from), std::max(hull.to, ranges[i].to)};
        if (hull.from >= hull.to) return {0, 0};
        return {std::max<Index>(hull.from - more * L, 0), std::min(hull.to + more * L, padded)};
    }

    void hear(const Call<T>& c, Index i) {
        using Int = typename Lanes<T>::Int;
        const Index a = low(c, i), e = high(c, i);
        for (Index j = ranges[i].from; j < ranges[i].to; j += L) {
            const I<T> column = count_up<T>() + (Int)j;
            heard[j / L] = (column >= (Int)a) & (column < (Int)e);
        }
    }

    Sheet<T>& of(std::vector<Sheet<T>>& rows, Index i) { return rows[(i + band + 2) % (band + 2)]; }

    // The prior's logits of row i; zeros outside the sample.
    void fill_logits(const Call<T>& c, Index i) {
        Sheet<T>& to = of(logits, i);
        if (i < 0 || i >= steps) return to.clear(c.heads, padded);
        const Range range = around(i - 1, i + 1, 1);
        for (Index h = 0; h < c.heads; ++h) {
            const Channels<T, W> q(q_prior.at(i, h));
            const T* k = k_prior[h * wide()];
            T* row = to[h];
            over<T>(range, COLUMNS {
                constexpr int N = count;
                V<T> total[N] = {};
                for (Index d = 0; d < wide(); ++d) EACH(N) total[n] += q[d] * load(k + d * k_prior.stride + j + n * L);
                EACH(N) store<T>(row + j + n * L, total[n]);
            });
        }
    }
    void predict(const Call<T>& c, const Kernel<T>& kernel, Index i) {
        T* const rows[3] = {of(logits, i - 1)[0], of(logits, i)[0], of(logits, i + 1)[0]};
        kernel.convolve(rows, logits[0].stride, predicted[0], predicted.stride, ranges[i]);
    }
};

template <class T> inline V<T> positive(V<T> x) { return x > 0 ? x : V<T>{}; }
template <class T> inline V<T> size(V<T> x) { return x < 0 ? -x : x; }
// Where nothing is heard there is nothing to be compared either.
template <class T> inline V<T> or_lowest(I<T> where, V<T> x) { return where ? x : all<T>(std::numeric_limits<T>::lowest() / 4); }

// The largest logit, where it is so large or so small that powers of two would not do.
template <class T> inline T shift_of(V<T> top) {
    const T most = largest<T>(top);
    return std::abs(most) > STEEP && most > std::numeric_limits<T>::lowest() / 8 ? most : T(0);
}

// Runs `pass(shift)`, which returns the largest logits, without a shift, and again with the shift that they turn out to need.
template <class T, class Pass> inline T shifted(Pass pass) {
    T shift = 0;
    for (T wanted; (wanted = shift_of<T>(pass(shift))) != shift; shift = wanted) {}
    return shift;
}

// Turns N logits, less the shift, into powers of two where they are heard; keeps the largest logits and the sum.
template <class T, int N> inline __attribute__((always_inline)) void powers(V<T>* x, const I<T>* heard, T shift, V<T>& top, V<T>& total) {
    EACH(N) {
        const V<T> compared = or_lowest<T>(heard[n], x[n]);
        top = compared > top ? compared : top;
    }
    EACH(N) x[n] -= shift;
    exp2<T, N>(x);
    EACH(N) x[n] = keep<T>(heard[n], x[n]);
    EACH(N) total += x[n];
}

template <class T, int W> void forward_row(const Call<T>& c, Memory<T, W>& m, Index i, T mu) {
    constexpr int L = LANES<T>;
    const Range range = m.ranges[i];
    const Index wide = m.wide(), stride = m.k.stride;
    const I<T>* heard = m.heard.data();
    T* p = m.p[0];
    for (Index h = 0; h < c.heads; ++h) {
        const Channels<T, W> q(m.q.at(i, h));
        const T *k = m.k[h * wide], *v = m.v[h * wide], *f = m.predicted[h];
        V<T> total;
        const T inner_shift = shifted<T>([&](T shift) {
            V<T> top = or_lowest<T>(I<T>{}, V<T>{}), found{};
            over<T>(range, COLUMNS {
                constexpr int N = count;
                V<T> s[N] = {};
                for (Index d = 0; d < wide; ++d) EACH(N) s[n] += q[d] * load(k + d * stride + j + n * L);
                powers<T, N>(s, heard + j / L, shift, top, found);
                EACH(N) store<T>(p + j + n * L, s[n]);
            });
            total = found;
            return top;
        });
        T inner = sum<T>(total);
        inner = inner == 0 ? 1 : inner;
        const T share = (1 - mu) * T(LOG2E) / inner;
        const T outer_shift = shifted<T>([&](T shift) {
            V<T> top = or_lowest<T>(I<T>{}, V<T>{}), found{};
            Sums<T, W> out(m.sums.data(), wide);
            over<T>(range, COLUMNS {
                constexpr int N = count;
                V<T> u[N], t[N], z[N];
                EACH(N) u[n] = load(f + j + n * L);
                EACH(N) t[n] = size<T>(u[n]);
                normal_tail<N>(t, z);
                EACH(N) z[n] = share * load(p + j + n * L) + mu * T(LOG2E) * (positive<T>(u[n]) - t[n] * z[n]);
                powers<T, N>(z, heard + j / L, shift, top, found);
                for (Index d = 0; d < wide; ++d) EACH(N) out[d] += z[n] * load(v + d * stride + j + n * L);
            });
            total = found;
            out.put(m.out.data());
            return top;
        });
        T outer = sum<T>(total);
        outer = outer == 0 ? 1 : outer;
        for (Index d = 0; d < c.value_width; ++d) c.out.at(m.start + i, h, d) = m.out[d] / outer;
        T* kept = c.statistics + ((m.start + i) * c.heads + h) * 2;
        kept[0] = inner_shift + std::log2(inner);
        kept[1] = outer_shift + std::log2(outer);
    }
}

template <class T> Index helpful_threads(const Call<T>& c) {
    Index edges = 0;
    for (Index b = 0; b < c.samples; ++b) edges += c.length[b] * c.length[b];
    return std::min(c.threads, 1 + 8 * edges * c.heads / WORTH_A_THREAD);
}

template <class T, int W> void forward(const Call<T>& c, T mu) {
    const Kernel<T> kernel(c.weight, c.bias, c.heads, false);
    each<Memory<T, W>>(c.samples, helpful_threads(c), [&](Index b, Memory<T, W>& m) {
        if (!c.length[b]) return;
        m.take(c, b, false);
        m.fill_logits(c, -1);
        m.fill_logits(c, 0);
        for (Index i = 0; i < m.steps; ++i) {
            m.fill_logits(c, i + 1);
            m.predict(c, kernel, i);
            if (c.begin) m.hear(c, i);
            forward_row<T, W>(c, m, i, mu);
        }
    });
}

// What flows back through row i of all heads, down to the predictions: their gradients without the factor mu, in `slopes`.
template <class T, int W> void backward_row(const Call<T>& c, Memory<T, W>& m, Index i, T mu) {
    constexpr int L = LANES<T>;
    const Range range = m.ranges[i];
    const Index wide = m.wide(), stride = m.k.stride;
    const I<T>* heard = m.heard.data();
    T *p = m.p[0], *z = m.z[0];
    Sheet<T>& slopes = m.of(m.slopes, i);
    const Range cleared = m.around(i - 2, i + 2, 2);
    for (Index h = 0; h < c.heads; ++h) {
        const T *kept = c.statistics + ((m.start + i) * c.heads + h) * 2, inner = kept[0], outer = kept[1];
        const T *k = m.k[h * wide], *v = m.v[h * wide], *f = m.predicted[h];
        T *dk = m.dk[h * wide], *dv = m.dv[h * wide], *slope = slopes[h], delta = 0;
        for (Index d = 0; d < c.value_width; ++d) delta += c.out.at(m.start + i, h, d) * c.grad.at(m.start + i, h, d);
        std::fill(slope + cleared.from, slope + std::max(cleared.from, range.from), T(0));
        std::fill(slope + std::min(range.to, cleared.to), slope + cleared.to, T(0));
        const Channels<T, W> q(m.q.at(i, h)), g(m.g.at(i, h));
        V<T> total{}, d_bias{};
        over<T>(range, COLUMNS {
            constexpr int N = count;
            V<T> s[N], d_logit[N], u[N], t[N], tail[N], weight[N], density[N];
            EACH(N) s[n] = all<T>(-inner);
            for (Index d = 0; d < wide; ++d) EACH(N) s[n] += q[d] * load(k + d * stride + j + n * L);
            exp2<T, N>(s);
            EACH(N) s[n] = keep<T>(heard[j / L + n], s[n]);
            EACH(N) store<T>(p + j + n * L, s[n]);
            EACH(N) u[n] = load(f + j + n * L);
            EACH(N) t[n] = size<T>(u[n]);
            normal_tail<N>(t, tail);
            EACH(N) weight[n] = (1 - mu) * T(LOG2E) * s[n] + mu * T(LOG2E) * (positive<T>(u[n]) - t[n] * tail[n]) - outer;
            exp2<T, N>(weight);
            EACH(N) weight[n] = keep<T>(heard[j / L + n], weight[n]);
            EACH(N) d_logit[n] = all<T>(-delta);
            for (Index d = 0; d < wide; ++d) EACH(N) d_logit[n] += g[d] * load(v + d * stride + j + n * L);
            EACH(N) d_logit[n] = keep<T>(heard[j / L + n], weight[n] * d_logit[n]);
            EACH(N) store<T>(z + j + n * L, d_logit[n]);
            EACH(N) total += s[n] * d_logit[n];
            for (Index d = 0; d < wide; ++d)
                EACH(N) store<T>(dv + d * stride + j + n * L, load(dv + d * stride + j + n * L) + g[d] * weight[n]);
            EACH(N) density[n] = T(-0.7213475204444817) * u[n] * u[n];
            exp2<T, N>(density);
            EACH(N) {
                const V<T> df = d_logit[n] * ((u[n] < 0 ? tail[n] : 1 - tail[n]) + u[n] * (T(0.3989422804014327) * density[n]));
                u[n] = keep<T>(heard[j / L + n], df);
                store<T>(slope + j + n * L, u[n]);
                d_bias += u[n];
            }
        });
        m.db[h] += d_bias;
        const T mean = sum<T>(total);
        Sums<T, W> dq(m.sums.data(), wide);
        over<T>(range, COLUMNS {
            constexpr int N = count;
            V<T> d_score[N];
            EACH(N) d_score[n] = load(p + j + n * L) * (load(z + j + n * L) - mean);
            for (Index d = 0; d < wide; ++d) EACH(N) dq[d] += d_score[n] * load(k + d * stride + j + n * L);
            for (Index d = 0; d < wide; ++d)
                EACH(N) store<T>(dk + d * stride + j + n * L, load(dk + d * stride + j + n * L) + q[d] * d_score[n]);
        });
        dq.put(m.dq.at(i, h));
    }
}

// Adds the share of rows first to last (exclusive) to the gradient of the weights of M heads' predictions from `o` on; the gradient lies as
// in a `Kernel`: [block][h][x][y][OUT].
template <class T, int W, int M> void add_weights_of(const Call<T>& c, Memory<T, W>& m, Index first, Index last, Index o) {
    constexpr int L = LANES<T>;
    const Index stride = m.slopes[0].stride;
    for (Index h = 0; h < c.heads; ++h)
        for (int x = 0; x < 3; ++x) {
            V<T> total[3][M] = {};
            for (Index i = first; i < last; ++i) {
                const T *row = m.logit_rows[i - first + x] + h * stride, *slope = m.slope_rows[i - first] + o * stride;
                const Range range = m.ranges[i];
                for (Index j = range.from; j < range.to; j += L) {
                    V<T> seen[3];
#pragma GCC unroll 3
                    for (int y = 0; y < 3; ++y) seen[y] = load(row + j + y - 1);
                    EACH(M) {
                        const V<T> s = load(slope + n * stride + j);
#pragma GCC unroll 3
                        for (int y = 0; y < 3; ++y) total[y][n] += s * seen[y];
                    }
                }
            }
            for (int y = 0; y < 3; ++y) EACH(M) m.dw[((((o + n) / OUT * c.heads + h) * 3 + x) * 3 + y) * OUT + n % OUT] += total[y][n];
        }
}

template <class T, int W> void add_weights(const Call<T>& c, Memory<T, W>& m, Index first, Index last) {
    m.logit_rows.clear();
    m.slope_rows.clear();
    for (Index i = first - 1; i <= last; ++i) m.logit_rows.push_back(m.of(m.logits, i)[0]);
    for (Index i = first; i < last; ++i) m.slope_rows.push_back(m.of(m.slopes, i)[0]);
    Index o = 0;
    for (; o + 2 * OUT <= c.heads; o += 2 * OUT) add_weights_of<T, W, 2 * OUT>(c, m, first, last, o);
    for (; o < c.heads; o += OUT) add_weights_of<T, W, OUT>(c, m, first, last, o);
}

// What flows back from the rows of predictions around row i to the prior's logits of it.
template <class T, int W> void backward_prior(const Call<T>& c, Memory<T, W>& m, const Kernel<T>& transposed, Index i) {
    constexpr int L = LANES<T>;
    const Range range = m.around(i - 1, i + 1, 1);
    const Index wide = m.wide(), stride = m.k_prior.stride;
    T* const rows[3] = {m.of(m.slopes, i - 1)[0], m.of(m.slopes, i)[0], m.of(m.slopes, i + 1)[0]};
    transposed.convolve(rows, m.slopes[0].stride, m.d_logits[0], m.d_logits.stride, range);
    for (Index h = 0; h < c.heads; ++h) {
        const T *grad = m.d_logits[h], *k = m.k_prior[h * wide];
        T* dk = m.dk_prior[h * wide];
        const Channels<T, W> q(m.q_prior.at(i, h));
        Sums<T, W> dq(m.sums.data(), wide);
        over<T>(range, COLUMNS {
            constexpr int N = count;
            V<T> given[N];
            EACH(N) given[n] = load(grad + j + n * L);
            for (Index d = 0; d < wide; ++d) EACH(N) dq[d] += given[n] * load(k + d * stride + j + n * L);
            for (Index d = 0; d < wide; ++d)
                EACH(N) store<T>(dk + d * stride + j + n * L, load(dk + d * stride + j + n * L) + q[d] * given[n]);
        });
        dq.put(m.dq_prior.at(i, h));
    }
}

template <class T, int W> void backward(const Call<T>& c, T mu) {
    const Kernel<T> kernel(c.weight, c.bias, c.heads, false), transposed(c.weight, nullptr, c.heads, true);
    each<Memory<T, W>>(c.samples, helpful_threads(c), [&](Index b, Memory<T, W>& m) {
        if (!c.length[b]) return;
        m.take(c, b, true);
        m.fill_logits(c, -1);
        m.fill_logits(c, 0);
        for (Index first = 0; first < m.steps; first += m.band) {
            const Index last = std::min(first + m.band, m.steps);
            for (Index i = first; i < last; ++i) {
                m.fill_logits(c, i + 1);
                m.predict(c, kernel, i);
                if (c.begin) m.hear(c, i);
                backward_row<T, W>(c, m, i, mu);
                if (i) backward_prior<T, W>(c, m, transposed, i - 1);
            }
            add_weights<T, W>(c, m, first, last);
        }
        m.of(m.slopes, m.steps).clear((c.heads + OUT - 1) / OUT * OUT, m.padded);
        backward_prior<T, W>(c, m, transposed, m.steps - 1);
        m.dq.put(c.d_query, m.start, m.steps, c.heads, c.width, T((1 - mu) / std::sqrt(double(c.width))));
        m.dk.put(c.d_key, m.start, m.steps, c.heads, c.width, m.wide(), T((1 - mu) / LOG2E));
        m.dv.put(c.d_value, m.start, m.steps, c.heads, c.value_width, m.wide(), 1);
        m.dq_prior.put(c.d_prior_query, m.start, m.steps, c.heads, c.prior_width, T(mu / std::sqrt(double(c.prior_width))));
        m.dk_prior.put(c.d_prior_key, m.start, m.steps, c.heads, c.prior_width, m.wide(), mu);
        T* to = c.d_parameters + b * (c.heads * c.heads * 9 + c.heads);
        for (Index at = 0; at < Index(m.dw.size()); at += OUT) {
            T found[OUT];
            sums<T, OUT>(&m.dw[at], found);
            for (Index n = 0, o = at / (c.heads * 9 * OUT) * OUT; n < OUT && o + n < c.heads; ++n)
                to[(o + n) * c.heads * 9 + at / OUT % (c.heads * 9)] = mu * found[n];
        }
        to += c.heads * c.heads * 9;
        for (Index h = 0; h < c.heads; ++h) *to++ = mu * sum<T>(m.db[h]);
    });
}

template <class T> void run_forward(const Call<T>* c, T mu) {
    const Index widest = std::max({c->width, c->value_width, c->prior_width});
    if (widest <= 5) return forward<T, 5>(*c, mu);
    if constexpr (sizeof(T) == 4)
        if (widest <= 8) return forward<T, 8>(*c, mu);
    forward<T, 0>(*c, mu);
}

template <class T> void run_backward(const Call<T>* c, T mu) {
    const Index widest = std::max({c->width, c->value_width, c->prior_width});
    if (widest <= 5) return backward<T, 5>(*c, mu);
    if constexpr (sizeof(T) == 4)
        if (widest <= 8) return backward<T, 8>(*c, mu);
    backward<T, 0>(*c, mu);
}

}  // namespace

extern "C" {
void predictive_forward_float(const void* call, double mu) { run_forward(static_cast<const Call<float>*>(call), float(mu)); }
void predictive_forward_double(const void* call, double mu) { run_forward(static_cast<const Call<double>*>(call), mu); }
void predictive_backward_float(const void* call, double mu) { run_backward(static_cast<const Call<float>*>(call), float(mu)); }
void predictive_backward_double(const void* call, double mu) { run_backward(static_cast<const Call<double>*>(call), mu); }
}
