// Predictive attention. Keys lie along the lanes. A sample is computed row by row: the prior's logits of three rows are kept, and
// convolved into a row of predictions; see mea_graph/ops/predictive/cpu.py for the formulas. Base 2 throughout.
#include "lanes.h"

namespace {

constexpr double LOG2E = 1.4426950408889634;
constexpr float STEEP = 60;  // powers of two of logits up to this size need no shift
constexpr int OUT = 4;       // heads whose convolution is computed at once
constexpr int WIDE = 4;      // vectors of columns that are

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

// (channels, steps), with room on both sides that stays zero.
template <class T> struct Sheet {
    static constexpr int L = LANES<T>;
    std::vector<T> memory;
    Index stride = 0;

    void clear(Index channels, Index padded) {
        stride = padded + 2 * L;
        memory.assign(channels * stride, T(0));
    }
    T* operator[](Index channel) { return memory.data() + channel * stride + L; }

    void take(const Rows<T>& rows, Index start, Index steps, Index heads, Index width, Index padded, T scale) {
        clear(heads * width, padded);
        for (Index h = 0; h < heads; ++h)
            for (Index d = 0; d < width; ++d) {
                T* to = (*this)[h * width + d];
                for (Index i = 0; i < steps; ++i) to[i] = rows.at(start + i, h, d) * scale;
            }
    }
    void put(const Rows<T>& rows, Index start, Index steps, Index heads, Index width, T scale) {
        for (Index h = 0; h < heads; ++h)
            for (Index d = 0; d < width; ++d) {
                const T* from = (*this)[h * width + d];
                for (Index i = 0; i < steps; ++i) rows.at(start + i, h, d) = from[i] * scale;
            }
    }
};

struct Range {
    Index from, to;  // columns, whole vectors
};

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

template <class T> struct Memory {
    static constexpr int L = LANES<T>;
    Sheet<T> q, k, v, q_prior, k_prior, g, logits[3], slopes[3], dq, dk, dv, dq_prior, dk_prior;
    Sheet<T> predicted, p, z, d_logits;
    std::vector<I<T>> heard;
    std::vector<V<T>> dw, db;
    std::vector<Range> ranges;
    Index steps, padded, start;

    void take(const Call<T>& c, Index b, bool backward) {
        steps = c.length[b];
        start = c.start[b];
        padded = (steps + L - 1) / L * L;
        const Index block = (c.heads + OUT - 1) / OUT * OUT;
        q.take(c.query, start, steps, c.heads, c.width, padded, T(LOG2E / std::sqrt(double(c.width))));
        k.take(c.key, start, steps, c.heads, c.width, padded, 1);
        v.take(c.value, start, steps, c.heads, c.value_width, padded, 1);
        q_prior.take(c.prior_query, start, steps, c.heads, c.prior_width, padded, T(1 / std::sqrt(double(c.prior_width))));
        k_prior.take(c.prior_key, start, steps, c.heads, c.prior_width, padded, 1);
        for (auto& row : logits) row.clear(c.heads, padded);
        predicted.clear(block, padded);
        p.clear(1, padded);
        z.clear(1, padded);
        heard.assign(padded / L, I<T>{});
        ranges.clear();
        for (Index i = 0; i < steps; ++i) ranges.push_back(columns(c, i));
        if (!c.begin) hear(c, 0);
        if (!backward) return;
        g.take(c.grad, start, steps, c.heads, c.value_width, padded, 1);
        for (auto& row : slopes) row.clear(block, padded);
        d_logits.clear(block, padded);
        dq.clear(c.heads * c.width, padded);
        dk.clear(c.heads * c.width, padded);
        dv.clear(c.heads * c.value_width, padded);
        dq_prior.clear(c.heads * c.prior_width, padded);
        dk_prior.clear(c.heads * c.prior_width, padded);
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

    T* ring(Sheet<T>* rows, Index i) { return rows[(i + 3) % 3][0]; }

    // The prior's logits of row i; zeros outside the sample.
    void fill_logits(const Call<T>& c, Index i) {
        Sheet<T>& to = logits[(i + 3) % 3];
        const Range range = around(i - 1, i + 1, 1);
        for (Index h = 0; h < c.heads; ++h) {
            if (i < 0 || i >= steps) {
                std::fill(to[h], to[h] + padded, T(0));
                continue;
            }
            for (Index j = range.from; j < range.to; j += L) {
                V<T> total{};
                for (Index d = h * c.prior_width; d < (h + 1) * c.prior_width; ++d) total += q_prior[d][i] * load(k_prior[d] + j);
                store<T>(to[h] + j, total);
            }
        }
    }
    void predict(const Call<T>& c, const Kernel<T>& kernel, Index i) {
        T* const rows[3] = {ring(logits, i - 1), ring(logits, i), ring(logits, i + 1)};
        kernel.convolve(rows, logits[0].stride, predicted[0], predicted.stride, ranges[i]);
    }
};

template <class T> inline V<T> dot(Sheet<T>& x, Index first, Index width, Index i, const T* with_columns, Index stride, V<T> from) {
    for (Index d = 0; d < width; ++d) from += x[first + d][i] * load(with_columns + d * stride);
    return from;
}

template <class T> inline T row_sum(const T* x, const T* y, Range range) {
    constexpr int L = LANES<T>;
    V<T> total{}, other{};
    Index j = range.from;
    for (; j + 2 * L <= range.to; j += 2 * L) total += load(x + j) * load(y + j), other += load(x + j + L) * load(y + j + L);
    if (j < range.to) total += load(x + j) * load(y + j);
    return sum<T>(total + other);
}

template <class T> inline V<T> positive(V<T> x) { return x > 0 ? x : V<T>{}; }
template <class T> inline V<T> size(V<T> x) { return x < 0 ? -x : x; }
// Where nothing is heard there is nothing to be compared either.
template <class T> inline V<T> or_lowest(I<T> where, V<T> x) { return where ? x : all<T>(std::numeric_limits<T>::lowest() / 4); }

// The largest logit, where it is so large or so small that powers of two would not do.
template <class T> inline T shift_of(V<T> top) {
    const T most = largest<T>(top);
    return std::abs(most) > STEEP && most > std::numeric_limits<T>::lowest() / 8 ? most : T(0);
}

template <class T> void forward_row(const Call<T>& c, Memory<T>& m, Index i, T mu) {
    constexpr int L = LANES<T>;
    const Range range = m.ranges[i];
    T *p = m.p[0], *z = m.z[0];
    for (Index h = 0; h < c.heads; ++h) {
        V<T> top = or_lowest<T>(I<T>{}, V<T>{}), total{};
        for (Index j = range.from; j < range.to; j += L) {
            V<T> s = dot<T>(m.q, h * c.width, c.width, i, m.k[h * c.width] + j, m.k.stride, V<T>{});
            store<T>(p + j, s);
            s = or_lowest<T>(m.heard[j / L], s);
            top = s > top ? s : top;
        }
        const T inner_shift = shift_of<T>(top);
        for (Index j = range.from; j < range.to; j += L) {
            V<T> e = keep<T>(m.heard[j / L], exp2<T>(load(p + j) - inner_shift));
            store<T>(p + j, e);
            total += e;
        }
        T inner = sum<T>(total);
        inner = inner == 0 ? 1 : inner;
        const T share = (1 - mu) * T(LOG2E) / inner, *f = m.predicted[h];
        top = or_lowest<T>(I<T>{}, V<T>{});
        for (Index j = range.from; j < range.to; j += L) {
            const V<T> u = load(f + j), t = size<T>(u);
            const V<T> logit = share * load(p + j) + mu * T(LOG2E) * (positive<T>(u) - t * normal_tail(t));
            store<T>(z + j, logit);
            const V<T> s = or_lowest<T>(m.heard[j / L], logit);
            top = s > top ? s : top;
        }
        const T outer_shift = shift_of<T>(top);
        total = V<T>{};
        for (Index j = range.from; j < range.to; j += L) {
            const V<T> e = keep<T>(m.heard[j / L], exp2<T>(load(z + j) - outer_shift));
            store<T>(z + j, e);
            total += e;
        }
        T outer = sum<T>(total);
        outer = outer == 0 ? 1 : outer;
        for (Index d = 0; d < c.value_width; ++d)
            c.out.at(m.start + i, h, d) = row_sum<T>(z, m.v[h * c.value_width + d], range) / outer;
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

template <class T> void forward(const Call<T>& c, T mu) {
    const Kernel<T> kernel(c.weight, c.bias, c.heads, false);
    each<Memory<T>>(c.samples, helpful_threads(c), [&](Index b, Memory<T>& m) {
        if (!c.length[b]) return;
        m.take(c, b, false);
        m.fill_logits(c, -1);
        m.fill_logits(c, 0);
        for (Index i = 0; i < m.steps; ++i) {
            m.fill_logits(c, i + 1);
            m.predict(c, kernel, i);
            if (c.begin) m.hear(c, i);
            forward_row<T>(c, m, i, mu);
        }
    });
}

// What flows back through row i of all heads, down to the predictions: their gradients without the factor mu, in `slopes`.
template <class T> void backward_row(const Call<T>& c, Memory<T>& m, Index i, T mu) {
    constexpr int L = LANES<T>;
    const Range range = m.ranges[i];
    T *p = m.p[0], *z = m.z[0];
    Sheet<T>& slopes = m.slopes[(i + 3) % 3];
    const Range cleared = m.around(i - 2, i + 2, 2);
    for (Index h = 0; h < c.heads; ++h) {
        const T *kept = c.statistics + ((m.start + i) * c.heads + h) * 2, inner = kept[0], outer = kept[1];
        T delta = 0, *slope = slopes[h];
        for (Index d = 0; d < c.value_width; ++d) delta += c.out.at(m.start + i, h, d) * c.grad.at(m.start + i, h, d);
        std::fill(slope + cleared.from, slope + std::max(cleared.from, range.from), T(0));
        std::fill(slope + std::min(range.to, cleared.to), slope + cleared.to, T(0));
        const T* f = m.predicted[h];
        V<T> total{}, d_bias{};
        for (Index j = range.from; j < range.to; j += L) {
            const I<T> heard = m.heard[j / L];
            V<T> s = dot<T>(m.q, h * c.width, c.width, i, m.k[h * c.width] + j, m.k.stride, all<T>(-inner));
            s = keep<T>(heard, exp2<T>(s));
            const V<T> u = load(f + j), t = size<T>(u), tail = normal_tail(t);
            V<T> logit = (1 - mu) * T(LOG2E) * s + mu * T(LOG2E) * (positive<T>(u) - t * tail) - outer;
            const V<T> weight = keep<T>(heard, exp2<T>(logit));
            V<T> d_logit = dot<T>(m.g, h * c.value_width, c.value_width, i, m.v[h * c.value_width] + j, m.v.stride, all<T>(-delta));
            d_logit = keep<T>(heard, weight * d_logit);
            const V<T> density = T(0.3989422804014327) * exp2<T>(T(-0.7213475204444817) * u * u);
            const V<T> df = keep<T>(heard, d_logit * ((u < 0 ? tail : 1 - tail) + u * density));
            store<T>(slope + j, df);
            d_bias += df;
            total += s * d_logit;
            for (Index d = 0; d < c.value_width; ++d) {
                T* to = m.dv[h * c.value_width + d] + j;
                store<T>(to, load(to) + m.g[h * c.value_width + d][i] * weight);
            }
            store<T>(p + j, s);
            store<T>(z + j, d_logit);
        }
        m.db[h] += d_bias;
        const T mean = sum<T>(total);
        for (Index j = range.from; j < range.to; j += L) {
            const V<T> d_score = load(p + j) * (load(z + j) - mean);
            store<T>(z + j, d_score);
            for (Index d = h * c.width; d < (h + 1) * c.width; ++d) {
                T* to = m.dk[d] + j;
                store<T>(to, load(to) + m.q[d][i] * d_score);
            }
        }
        for (Index d = h * c.width; d < (h + 1) * c.width; ++d) m.dq[d][i] = row_sum<T>(z, m.k[d], range);
    }
}

// Adds row i's share to the gradient of the weights, [block][h][x][y][OUT] as they lie in a `Kernel`.
template <class T> void add_weights(const Call<T>& c, Memory<T>& m, Index i) {
    constexpr int L = LANES<T>;
    const Range range = m.ranges[i];
    Sheet<T>& slopes = m.slopes[(i + 3) % 3];
    for (Index o = 0; o < c.heads; o += OUT)
        for (Index h = 0; h < c.heads; ++h)
            for (int x = 0; x < 3; ++x) {
                const T* row = m.ring(m.logits, i + x - 1) + h * m.logits[0].stride;
                V<T> total[3][OUT] = {};
                for (Index j = range.from; j < range.to; j += L) {
                    V<T> slope[OUT];
#pragma GCC unroll 4
                    for (int n = 0; n < OUT; ++n) slope[n] = load(slopes[o + n] + j);
#pragma GCC unroll 3
                    for (int y = 0; y < 3; ++y) {
                        const V<T> seen = load(row + j + y - 1);
#pragma GCC unroll 4
                        for (int n = 0; n < OUT; ++n) total[y][n] += slope[n] * seen;
                    }
                }
                V<T>* to = &m.dw[((o / OUT * c.heads + h) * 3 + x) * 3 * OUT];
                for (int y = 0; y < 3; ++y)
                    for (int n = 0; n < OUT; ++n) to[y * OUT + n] += total[y][n];
            }
}

// What flows back from the rows of predictions around row i to the prior's logits of it.
template <class T> void backward_prior(const Call<T>& c, Memory<T>& m, const Kernel<T>& transposed, Index i) {
    constexpr int L = LANES<T>;
    const Range range = m.around(i - 1, i + 1, 1);
    T* const rows[3] = {m.ring(m.slopes, i - 1), m.ring(m.slopes, i), m.ring(m.slopes, i + 1)};
    transposed.convolve(rows, m.slopes[0].stride, m.d_logits[0], m.d_logits.stride, range);
    for (Index h = 0; h < c.heads; ++h) {
        const T* grad = m.d_logits[h];
        for (Index d = h * c.prior_width; d < (h + 1) * c.prior_width; ++d) {
            m.dq_prior[d][i] = row_sum<T>(grad, m.k_prior[d], range);
            const T q = m.q_prior[d][i];
            T* to = m.dk_prior[d];
            for (Index j = range.from; j < range.to; j += L) store<T>(to + j, load(to + j) + q * load(grad + j));
        }
    }
}

template <class T> void backward(const Call<T>& c, T mu) {
    const Kernel<T> kernel(c.weight, c.bias, c.heads, false), transposed(c.weight, nullptr, c.heads, true);
    each<Memory<T>>(c.samples, helpful_threads(c), [&](Index b, Memory<T>& m) {
        if (!c.length[b]) return;
        m.take(c, b, true);
        m.fill_logits(c, -1);
        m.fill_logits(c, 0);
        for (Index i = 0; i < m.steps; ++i) {
            m.fill_logits(c, i + 1);
            m.predict(c, kernel, i);
            if (c.begin) m.hear(c, i);
            backward_row<T>(c, m, i, mu);
            add_weights<T>(c, m, i);
            if (i) backward_prior<T>(c, m, transposed, i - 1);
        }
        m.slopes[(m.steps + 3) % 3].clear((c.heads + OUT - 1) / OUT * OUT, m.padded);  // the row after the last
        backward_prior<T>(c, m, transposed, m.steps - 1);
        m.dq.put(c.d_query, m.start, m.steps, c.heads, c.width, T((1 - mu) / std::sqrt(double(c.width))));
        m.dk.put(c.d_key, m.start, m.steps, c.heads, c.width, T((1 - mu) / LOG2E));
        m.dv.put(c.d_value, m.start, m.steps, c.heads, c.value_width, 1);
        m.dq_prior.put(c.d_prior_query, m.start, m.steps, c.heads, c.prior_width, T(mu / std::sqrt(double(c.prior_width))));
        m.dk_prior.put(c.d_prior_key, m.start, m.steps, c.heads, c.prior_width, mu);
        T* to = c.d_parameters + b * (c.heads * c.heads * 9 + c.heads);
        for (Index o = 0; o < c.heads; ++o)
            for (Index h = 0; h < c.heads; ++h)
                for (int x = 0; x < 9; ++x) *to++ = mu * sum<T>(m.dw[((o / OUT * c.heads + h) * 9 + x) * OUT + o % OUT]);
        for (Index h = 0; h < c.heads; ++h) *to++ = mu * sum<T>(m.db[h]);
    });
}

}  // namespace

extern "C" {
void predictive_forward_float(const void* call, double mu) { forward(*static_cast<const Call<float>*>(call), float(mu)); }
void predictive_forward_double(const void* call, double mu) { forward(*static_cast<const Call<double>*>(call), mu); }
void predictive_backward_float(const void* call, double mu) { backward(*static_cast<const Call<float>*>(call), float(mu)); }
void predictive_backward_double(const void* call, double mu) { backward(*static_cast<const Call<double>*>(call), mu); }
}
