// Interval attention. Query rows lie along the lanes, so that heads of few numbers fill them; a key is broadcast to all of them.
// See mea_graph/ops/interval/cpu.py for the formulas: base 2, and the map recomputed in the backward pass.
#include "lanes.h"

namespace {

constexpr Index CHUNK = 512;  // keys whose sum is taken apart: a sum over very many would lose digits
constexpr float STEEP = 60;      // base-2 logits up to this size need no shift before they become powers of two

template <class T> struct Call {
    Rows<T> query, key, value, out, grad, d_query, d_key, d_value;
    T* logsumexp;  // (K, N_t)
    T* delta;      // (K, N_t): -<grad, out>
    const Index *start, *length;                // (B,)
    const Index *source_start, *source_length;  // (B, S)
    const Index *begin, *end;                   // (N_t, S), or null: each row hears all of its sample
    Index samples, sources, heads, width, value_width, rows, threads;
};

// One source's keys, as one query vector hears them.
template <class T> struct Span {
    Index low, high;  // some lane hears them
    I<T> begin, end;  // by lane
};

template <class T, int W> struct Memory {
    static constexpr int L = LANES<T>;
    Array<T> q, g, shift, delta, dq, k, v, d_keys, out;
    Array<T> weights;  // probabilities of a few keys, then the gradients of their logits
    std::vector<Span<T>> spans;    // (query vectors, S)
    std::vector<Index> first, last;  // by key: the query vectors that may hear it
    Index steps, padded, keys;
    bool steep;  // whether a power of two of a logit could overflow, by the longest query and key

    void take(const Call<T>& c, Index b, Index h, T scale, bool backward) {
        steps = c.length[b];
        padded = (steps + L - 1) / L * L;
        const Index start = c.start[b];
        q.assign(W * padded, T(0));
        for (Index d = 0; d < c.width; ++d) c.query.get(start, h, d, steps, scale, &q[d * padded]);
        keys = 0;
        for (Index s = 0; s < c.sources; ++s) keys += c.source_length[b * c.sources + s];
        k.assign(W * keys, T(0));
        v.assign(W * keys, T(0));
        for (Index s = 0, j = 0; s < c.sources; ++s)
            for (Index r = c.source_start[b * c.sources + s], n = c.source_length[b * c.sources + s]; n; --n, ++r, ++j) {
                for (Index d = 0; d < c.width; ++d) k[j * W + d] = c.key.at(r, h, d);
                for (Index d = 0; d < c.value_width; ++d) v[j * W + d] = c.value.at(r, h, d);
            }
        steep = !(longest(q.data(), steps, padded, 1) * longest(k.data(), keys, 1, W) <= STEEP * STEEP);
        if (c.begin) take_spans(c, b);
        if (!backward) return;
        g.assign(W * padded, T(0));
        shift.assign(padded, T(0));
        delta.assign(padded, T(0));
        dq.assign(W * padded, T(0));
        d_keys.resize(2 * W * keys);  // of a key, then of its value
        for (Index d = 0; d < c.value_width; ++d) c.grad.get(start, h, d, steps, 1, &g[d * padded]);
        for (Index i = 0; i < steps; ++i) {
            shift[i] = -c.logsumexp[h * c.rows + start + i];
            delta[i] = c.delta[h * c.rows + start + i];
        }
    }

    static T longest(const T* x, Index count, Index channel, Index row) {
        T most = 0;
        for (Index i = 0; i < count; ++i) {
            T square = 0;
            for (Index d = 0; d < W; ++d) square += x[d * channel + i * row] * x[d * channel + i * row];
            if (!(square <= most)) most = square;
            if (most != most) break;  // no number
        }
        return most;
    }

    void take_spans(const Call<T>& c, Index b) {
        const Index vectors = padded / L;
        spans.assign(vectors * c.sources, Span<T>{});
        first.assign(keys, vectors);
        last.assign(keys, 0);
        for (Index i = 0; i < vectors; ++i)
            for (Index s = 0, before = 0; s < c.sources; ++s) {
                const Index origin = c.source_start[b * c.sources + s], count = c.source_length[b * c.sources + s];
                auto& span = spans[i * c.sources + s];
                span.low = keys;
                span.high = 0;
                for (int l = 0; l < L; ++l) {
                    const Index step = i * L + l, row = (c.start[b] + step) * c.sources + s;
                    Index low = 0, high = 0;
                    if (step < steps) {
                        low = std::clamp<Index>(c.begin[row] - origin, 0, count) + before;
                        high = std::clamp<Index>(c.end[row] - origin, 0, count) + before;
                    }
                    span.begin[l] = low;
                    span.end[l] = high;
                    if (low < high) span.low = std::min(span.low, low), span.high = std::max(span.high, high);
                }
                for (Index j = span.low; j < span.high; ++j) first[j] = std::min(first[j], i), last[j] = std::max(last[j], i + 1);
                before += count;
            }
    }
};

template <class T, int W> inline V<T> product(const V<T>* x, const T* y, V<T> from) {
#pragma GCC unroll 16
    for (int d = 0; d < W; ++d) from += x[d] * y[d];
    return from;
}

template <class T> inline I<T> hears(const Span<T>* span, Index j) {
    const I<T> key = I<T>{} + (typename Lanes<T>::Int)j;
    return (key >= span->begin) & (key < span->end);
}

// N query vectors from step `i` on.
template <class T, int W, int N, bool RUNS> void forward_rows(Memory<T, W>& m, const Span<T>* spans, Index sources, Index i) {
    constexpr int L = LANES<T>;
    V<T> q[N][W], top[N], total[N], out[N][W];
    for (int r = 0; r < N; ++r) {
        top[r] = all<T>(m.steep ? std::numeric_limits<T>::lowest() : T(0));
        total[r] = V<T>{};
        for (int d = 0; d < W; ++d) q[r][d] = load(&m.q[d * m.padded + i + r * L]), out[r][d] = V<T>{};
    }
    const Span<T> whole{0, m.keys, {}, {}};
    if (!RUNS) spans = &whole, sources = 1;
    if (m.steep) {
        for (auto span = spans; span < spans + sources; ++span)
            for (Index j = span->low; j < span->high; ++j)
                for (int r = 0; r < N; ++r) {
                    V<T> s = product<T, W>(q[r], &m.k[j * W], V<T>{});
                    if (RUNS) s = hears(span, j) ? s : top[r];
                    top[r] = s > top[r] ? s : top[r];
                }
        for (int r = 0; r < N; ++r) top[r] = top[r] == std::numeric_limits<T>::lowest() ? V<T>{} : top[r];
    }
    for (auto span = spans; span < spans + sources; ++span)
        for (Index from = span->low; from < span->high; from += CHUNK) {
            V<T> part[N] = {}, sums[N][W] = {};
            const Index to = std::min(from + CHUNK, span->high);
            for (Index j = from; j < to; ++j) {
                const T *k = &m.k[j * W], *v = &m.v[j * W];
#pragma GCC unroll 4
                for (int r = 0; r < N; ++r) {
                    V<T> p = exp2<T>(product<T, W>(q[r], k, -top[r]));
                    if (RUNS) p = keep<T>(hears(span, j), p);
                    part[r] += p;
#pragma GCC unroll 16
                    for (int d = 0; d < W; ++d) sums[r][d] += p * v[d];
                }
            }
            for (int r = 0; r < N; ++r) {
                total[r] += part[r];
                for (int d = 0; d < W; ++d) out[r][d] += sums[r][d];
            }
        }
    for (int r = 0; r < N; ++r) {
        total[r] = total[r] == 0 ? all<T>(1) : total[r];
        for (int d = 0; d < W; ++d) store<T>(&m.out[d * m.padded + i + r * L], out[r][d] / total[r]);
        store<T>(&m.shift[i + r * L], top[r] + log2<T>(total[r]));
    }
}

template <class T> Index helpful_threads(const Call<T>& c) {
    Index edges = 0;
    for (Index b = 0; b < c.samples; ++b)
        for (Index s = 0; s < c.sources; ++s) edges += c.length[b] * c.source_length[b * c.sources + s];
    return std::min(c.threads, 1 + edges * c.heads / WORTH_A_THREAD);
}

template <class T, int W> void forward(const Call<T>& c, T scale) {
    each<Memory<T, W>>(c.samples * c.heads, helpful_threads(c), [&](Index task, Memory<T, W>& m) {
        constexpr int L = LANES<T>;
        const Index b = task / c.heads, h = task % c.heads;
        if (!c.length[b]) return;
        m.take(c, b, h, scale, false);
        m.out.resize(W * m.padded);
        m.shift.resize(m.padded);
        Index i = 0;
        if (c.begin) {
            for (; i < m.padded; i += L) forward_rows<T, W, 1, true>(m, &m.spans[i / L * c.sources], c.sources, i);
        } else {
            for (; i + 2 * L <= m.padded; i += 2 * L) forward_rows<T, W, 2, false>(m, nullptr, 0, i);
            for (; i < m.padded; i += L) forward_rows<T, W, 1, false>(m, nullptr, 0, i);
        }
        for (Index d = 0; d < c.value_width; ++d) c.out.put(c.start[b], h, d, m.steps, 1, &m.out[d * m.padded]);
        std::copy_n(m.shift.data(), m.steps, c.logsumexp + h * c.rows + c.start[b]);
    });
}

// The probabilities that queries give to N keys from `j` on, and the gradients of their logits, by key.
template <class T, int W, int N, bool RUNS> void backward_logits(Memory<T, W>& m, Index sources, Index j, Index from, Index to) {
    constexpr int L = LANES<T>;
    const Index stride = m.padded;
    const T *k = &m.k[j * W], *v = &m.v[j * W], *q = m.q.data(), *g = m.g.data();
    T *weights = m.weights.data(), *grads = weights + N * stride;
    for (Index vector = from; vector < to; ++vector) {
        const Index i = vector * L;
        V<T> p[N], ds[N];
        EACH(N) p[n] = load(&m.shift[i]);
        EACH(N) ds[n] = load(&m.delta[i]);
#pragma GCC unroll 16
        for (int d = 0; d < W; ++d) {
            const V<T> x = load(q + d * stride + i);
            EACH(N) p[n] += x * k[n * W + d];
        }
        exp2<T, N>(p);
#pragma GCC unroll 16
        for (int d = 0; d < W; ++d) {
            const V<T> x = load(g + d * stride + i);
            EACH(N) ds[n] += x * v[n * W + d];
        }
        EACH(N) ds[n] *= p[n];
        if (RUNS) EACH(N) {
            I<T> heard{};
            for (Index source = 0; source < sources; ++source) heard |= hears(&m.spans[vector * sources + source], j + n);
            p[n] = keep<T>(heard, p[n]), ds[n] = keep<T>(heard, ds[n]);
        }
        EACH(N) store<T>(weights + n * stride + i, p[n]);
        EACH(N) store<T>(grads + n * stride + i, ds[n]);
    }
}

// What these add to the gradients of N keys, their values and all queries. It is a loop of its own so that no sum waits for an exponential.
template <class T, int W, int N> void backward_sums(Memory<T, W>& m, const T* weights, const T* grads, Index j, Index from, Index to) {
    constexpr int L = LANES<T>;
    const Index stride = m.padded;
    const T *k = &m.k[j * W], *q = m.q.data(), *g = m.g.data();
    T* dq = m.dq.data();
    V<T> found[N][2 * W] = {};
    for (Index i = from * L; i < to * L; i += L) {
        V<T> p[N], ds[N];
        EACH(N) p[n] = load(weights + n * stride + i);
        EACH(N) ds[n] = load(grads + n * stride + i);
#pragma GCC unroll 16
        for (int d = 0; d < W; ++d) {
            const V<T> x = load(g + d * stride + i), y = load(q + d * stride + i);
            EACH(N) found[n][W + d] += p[n] * x;
            EACH(N) found[n][d] += ds[n] * y;
            V<T> back = load(dq + d * stride + i);
            EACH(N) back += ds[n] * k[n * W + d];
            store<T>(dq + d * stride + i, back);
        }
    }
    EACH(N) sums<T, 2 * W>(found[n], &m.d_keys[(j + n) * 2 * W]);
}

template <class T, int W, int N, bool RUNS> void backward_keys(Memory<T, W>& m, Index sources, Index j) {
    Index from = 0, to = m.padded / LANES<T>;
    if (RUNS) {
        from = *std::min_element(&m.first[j], &m.first[j] + N);
        to = *std::max_element(&m.last[j], &m.last[j] + N);
    }
    backward_logits<T, W, N, RUNS>(m, sources, j, from, to);
    constexpr int M = W <= 5 && N > 1 ? 2 : 1;  // as many as the registers hold
    for (int n = 0; n < N; n += M)
        backward_sums<T, W, M>(m, &m.weights[n * m.padded], &m.weights[(N + n) * m.padded], j + n, from, to);
}

template <class T, int W, bool RUNS> void backward_keys(Memory<T, W>& m, Index sources) {
    constexpr int N = 4;  // keys side by side, as in the forward pass query vectors are
    m.weights.resize(2 * N * m.padded);
    Index j = 0;
    for (; j + N <= m.keys; j += N) backward_keys<T, W, N, RUNS>(m, sources, j);
    for (; j < m.keys; ++j) backward_keys<T, W, 1, RUNS>(m, sources, j);
}

template <class T, int W> void backward(const Call<T>& c, T scale, T back) {
    each<Memory<T, W>>(c.samples * c.heads, helpful_threads(c), [&](Index task, Memory<T, W>& m) {
        const Index b = task / c.heads, h = task % c.heads;
        if (!c.length[b]) return;
        m.take(c, b, h, scale, true);
        c.begin ? backward_keys<T, W, true>(m, c.sources) : backward_keys<T, W, false>(m, 1);
        for (Index d = 0; d < c.width; ++d) c.d_query.put(c.start[b], h, d, m.steps, back, &m.dq[d * m.padded]);
        for (Index s = 0, j = 0; s < c.sources; ++s)
            for (Index r = c.source_start[b * c.sources + s], n = c.source_length[b * c.sources + s]; n; --n, ++r, ++j) {
                for (Index d = 0; d < c.width; ++d) c.d_key.at(r, h, d) += m.d_keys[2 * j * W + d] * T(0.6931471805599453);
                for (Index d = 0; d < c.value_width; ++d) c.d_value.at(r, h, d) += m.d_keys[(2 * j + 1) * W + d];
            }
    });
}

template <class T> void run_forward(const Call<T>* c) {
    const T scale = T(1.4426950408889634 / std::sqrt(double(c->width)));
    const Index width = std::max(c->width, c->value_width);
    width <= 5 ? forward<T, 5>(*c, scale) : width <= 8 ? forward<T, 8>(*c, scale) : forward<T, 16>(*c, scale);
}

template <class T> void run_backward(const Call<T>* c) {
    const T back = T(1 / std::sqrt(double(c->width))), scale = T(1.4426950408889634 / std::sqrt(double(c->width)));
    const Index width = std::max(c->width, c->value_width);
    width <= 5 ? backward<T, 5>(*c, scale, back) : width <= 8 ? backward<T, 8>(*c, scale, back) : backward<T, 16>(*c, scale, back);
}

}  // namespace

extern "C" {
void interval_forward_float(const void* call) { run_forward(static_cast<const Call<float>*>(call)); }
void interval_forward_double(const void* call) { run_forward(static_cast<const Call<double>*>(call)); }
void interval_backward_float(const void* call) { run_backward(static_cast<const Call<float>*>(call)); }
void interval_backward_double(const void* call) { run_backward(static_cast<const Call<double>*>(call)); }
}
