// The recurrences of the Bi-LSTM and the Bi-GRU. The units of the hidden state lie along the lanes.
// LSTM: the formulas are those of recurrent/triton_kernels.py. GRU, forward, with a = driven and p the state's part of the candidate:
//     r, z = sigmoid(a + U h)      p = U_n h + b_n      n = tanh(a_n + r p)      h = (1 - z) n + z h
// and backward, with dh the gradient of the state, h that of the step before:
//     dn = dh (1 - z) (1 - n^2)    dr = dn p r (1 - r)    dz = dh (h - n) z (1 - z)    dp = dn r    dh = dh z + U^T (dr, dz, dp)
#include "lanes.h"

namespace {

constexpr Index STEPS_WORTH_A_THREAD = 1 << 10;

template <class T> struct Call {
    const T* driven;  // (N, 2, G, H): what the input adds to the gates, i, f, g, o of an LSTM, r, z, n of a GRU
    const T* weight;  // (S, 2, G, H, H), of a GRU (S, 2, G, H, H + 1), whose last column is the bias
    const Index *start, *length;  // (samples,), those of the first set first
    T* out;                       // (N, 2, H)
    T* states;                    // of an LSTM (N, 2, 6, H): i, f, g, o, c and h of the step before; of a GRU (N, 2, 5, H): r, z, n, p, h
    const T* grad;                // (N, 2, H)
    T* slopes;                    // (N, 2, 4, H): gradients of i, f, g, o; of r, z, n, p
    Index samples, per_set, hidden, threads;
};

template <class T> inline V<T> sigmoid(V<T> x) {
    V<T> power = x * T(-1.4426950408889634);
    return T(1) / (T(1) + exp2<T>(power > T(126) ? all<T>(126) : power));
}

template <class T> inline V<T> tanh(V<T> x) { return T(2) * sigmoid<T>(T(2) * x) - T(1); }

// One direction of one sample: where it is, the squares of its gates with rows of whole vectors, and a few vectors of the state's width.
template <class T, int GATES> struct Memory {
    static constexpr int L = LANES<T>, BIAS = GATES == 3;
    std::vector<T> squares, bias, gates, h, c, given, slopes, cells;
    Index width, steps, row, move, hidden, way;
    const T* held = nullptr;  // whose weights `squares` are

    void take(const Call<T>& call, Index task, bool backward) {
        const Index sample = task / 2;
        hidden = call.hidden;
        way = task % 2;
        width = (hidden + L - 1) / L * L;
        steps = call.length[sample];
        const bool up = (way == 0) != backward;
        row = call.start[sample] + (up ? 0 : steps - 1);
        move = up ? 1 : -1;
        for (auto* four : {&gates, &slopes}) four->assign(4 * width, T(0));
        h.assign(width, T(0));
        c.assign(width, T(0));
        given.assign(width, T(0));
        const T* weight = call.weight + (sample / call.per_set * 2 + way) * GATES * hidden * (hidden + BIAS);
        if (weight == held) return;
        held = weight;
        squares.assign(GATES * hidden * width, T(0));
        bias.assign(GATES * width, T(0));
        for (Index gate = 0; gate < GATES; ++gate)
            for (Index u = 0; u < hidden; ++u) {
                for (Index j = 0; j < hidden; ++j)
                    // forward: [j][gate][u], what unit j tells the gates; backward: [u][gate][j]
                    squares[backward ? (u * GATES + gate) * width + j : (j * GATES + gate) * width + u] = weight[j];
                if (BIAS) bias[gate * width + u] = weight[hidden];
                weight += hidden + BIAS;
            }
    }
    const T* square(Index unit, Index gate) const { return &squares[(unit * GATES + gate) * width]; }
    Index at() const { return row * 2 + way; }
    void read(std::vector<T>& to, Index slot, const T* from) const { std::copy(from, from + hidden, &to[slot * width]); }
    void write(T* to, const std::vector<T>& from, Index slot) const { std::copy(&from[slot * width], &from[slot * width] + hidden, to); }
};

template <class T> Index helpful_threads(const Call<T>& c) {
    Index steps = 0;
    for (Index b = 0; b < c.samples; ++b) steps += 2 * c.length[b];
    return std::min(c.threads, 1 + steps / STEPS_WORTH_A_THREAD);
}

// The loop over the steps of every direction and sample: `step` reads and writes what it needs of `m`.
template <class T, int GATES, class Step> void walk(const Call<T>& c, bool backward, Step step) {
    each<Memory<T, GATES>>(2 * c.samples, helpful_threads(c), [&](Index task, Memory<T, GATES>& m) {
        if (!c.length[task / 2]) return;
        m.take(c, task, backward);
        for (Index left = m.steps; left; --left, m.row += m.move) step(m, left > 1);
    });
}

// The first `count` vectors of a step, each padded to whole lanes.
template <class T, int GATES> void read(Memory<T, GATES>& m, std::vector<T>& to, const T* from, Index count) {
    for (Index slot = 0; slot < count; ++slot) m.read(to, slot, from + slot * m.hidden);
}

template <class T> void lstm_forward(const Call<T>& c) {
    constexpr int L = LANES<T>;
    walk<T, 4>(c, false, [&](Memory<T, 4>& m, bool) {
        T* saved = c.states + m.at() * 6 * m.hidden;
        read(m, m.gates, c.driven + m.at() * 4 * m.hidden, 4);
        m.write(saved + 5 * m.hidden, m.h, 0);
        for (Index u = 0; u < m.width; u += L) {
            T *at_i = &m.gates[u], *at_f = at_i + m.width, *at_g = at_f + m.width, *at_o = at_g + m.width;
            V<T> i = load(at_i), f = load(at_f), g = load(at_g), o = load(at_o);
            for (Index j = 0; j < m.hidden; ++j) {
                const T heard = m.h[j];
                const T* square = m.square(j, 0) + u;
                i += heard * load(square);
                f += heard * load(square + m.width);
                g += heard * load(square + 2 * m.width);
                o += heard * load(square + 3 * m.width);
            }
            i = sigmoid<T>(i), f = sigmoid<T>(f), g = tanh<T>(g), o = sigmoid<T>(o);
            const V<T> cell = f * load(&m.c[u]) + i * g;
            store(at_i, i), store(at_f, f), store(at_g, g), store(at_o, o);
            store(&m.c[u], cell);
            store(&m.given[u], o * tanh<T>(cell));
        }
        std::swap(m.h, m.given);
        for (Index gate = 0; gate < 4; ++gate) m.write(saved + gate * m.hidden, m.gates, gate);
        m.write(saved + 4 * m.hidden, m.c, 0);
        m.write(c.out + m.at() * m.hidden, m.h, 0);
    });
}

template <class T> void gru_forward(const Call<T>& c) {
    constexpr int L = LANES<T>;
    walk<T, 3>(c, false, [&](Memory<T, 3>& m, bool) {
        T* saved = c.states + m.at() * 5 * m.hidden;
        read(m, m.gates, c.driven + m.at() * 3 * m.hidden, 3);
        m.write(saved + 4 * m.hidden, m.h, 0);
        for (Index u = 0; u < m.width; u += L) {
            T *at_r = &m.gates[u], *at_z = at_r + m.width, *at_n = at_z + m.width, *at_p = at_n + m.width;
            V<T> r = load(at_r) + load(&m.bias[u]), z = load(at_z) + load(&m.bias[m.width + u]), p = load(&m.bias[2 * m.width + u]);
            for (Index j = 0; j < m.hidden; ++j) {
                const T heard = m.h[j];
                const T* square = m.square(j, 0) + u;
                r += heard * load(square);
                z += heard * load(square + m.width);
                p += heard * load(square + 2 * m.width);
            }
            r = sigmoid<T>(r), z = sigmoid<T>(z);
            const V<T> n = tanh<T>(load(at_n) + r * p);
            store(at_r, r), store(at_z, z), store(at_n, n), store(at_p, p);
            store(&m.given[u], n + z * (load(&m.h[u]) - n));
        }
        std::swap(m.h, m.given);
        for (Index gate = 0; gate < 4; ++gate) m.write(saved + gate * m.hidden, m.gates, gate);
        m.write(c.out + m.at() * m.hidden, m.h, 0);
    });
}

template <class T> void lstm_backward(const Call<T>& c) {
    constexpr int L = LANES<T>;
    walk<T, 4>(c, true, [&](Memory<T, 4>& m, bool more) {
        const T* states = c.states + m.at() * 6 * m.hidden;
        read(m, m.gates, states, 4);
        read(m, m.given, c.grad + m.at() * m.hidden, 1);
        m.cells.assign(2 * m.width, T(0));
        m.read(m.cells, 0, states + 4 * m.hidden);
        if (more) m.read(m.cells, 1, states + (12 * m.move + 4) * m.hidden);
        for (Index u = 0; u < m.width; u += L) {
            const T* gates = &m.gates[u];
            const V<T> i = load(gates), f = load(gates + m.width), g = load(gates + 2 * m.width), o = load(gates + 3 * m.width);
            const V<T> squashed = tanh<T>(load(&m.cells[u])), dh = load(&m.h[u]) + load(&m.given[u]);
            const V<T> dc = load(&m.c[u]) + dh * o * (T(1) - squashed * squashed);
            T* to = &m.slopes[u];
            store(to, dc * g * i * (T(1) - i));
            store(to + m.width, dc * load(&m.cells[m.width + u]) * f * (T(1) - f));
            store(to + 2 * m.width, dc * i * (T(1) - g * g));
            store(to + 3 * m.width, dh * squashed * o * (T(1) - o));
            store(&m.c[u], dc * f);
        }
        for (Index gate = 0; gate < 4; ++gate) m.write(c.slopes + (m.at() * 4 + gate) * m.hidden, m.slopes, gate);
        for (Index j = 0; j < m.width; j += L) {
            V<T> i{}, f{}, g{}, o{};
            for (Index u = 0; u < m.hidden; ++u) {
                const T *square = m.square(u, 0) + j, *slope = &m.slopes[u];
                i += slope[0] * load(square);
                f += slope[m.width] * load(square + m.width);
                g += slope[2 * m.width] * load(square + 2 * m.width);
                o += slope[3 * m.width] * load(square + 3 * m.width);
            }
            store(&m.h[j], (i + f) + (g + o));
        }
    });
}

template <class T> void gru_backward(const Call<T>& c) {
    constexpr int L = LANES<T>;
    walk<T, 3>(c, true, [&](Memory<T, 3>& m, bool) {
        const T* states = c.states + m.at() * 5 * m.hidden;
        read(m, m.gates, states, 4);
        read(m, m.given, c.grad + m.at() * m.hidden, 1);
        m.read(m.c, 0, states + 4 * m.hidden);
        for (Index u = 0; u < m.width; u += L) {
            const T* gates = &m.gates[u];
            const V<T> r = load(gates), z = load(gates + m.width), n = load(gates + 2 * m.width), p = load(gates + 3 * m.width);
            const V<T> dh = load(&m.h[u]) + load(&m.given[u]), dn = dh * (T(1) - z) * (T(1) - n * n);
            T* to = &m.slopes[u];
            store(to, dn * p * r * (T(1) - r));
            store(to + m.width, dh * (load(&m.c[u]) - n) * z * (T(1) - z));
            store(to + 2 * m.width, dn);
            store(to + 3 * m.width, dn * r);
            store(&m.h[u], dh * z);
        }
        for (Index gate = 0; gate < 4; ++gate) m.write(c.slopes + (m.at() * 4 + gate) * m.hidden, m.slopes, gate);
        for (Index j = 0; j < m.width; j += L) {
            V<T> r = load(&m.h[j]), z{}, p{};
            for (Index u = 0; u < m.hidden; ++u) {
                const T *square = m.square(u, 0) + j, *slope = &m.slopes[u];
                r += slope[0] * load(square);
                z += slope[m.width] * load(square + m.width);
                p += slope[3 * m.width] * load(square + 2 * m.width);
            }
            store(&m.h[j], r + z + p);
        }
    });
}

}  // namespace

extern "C" {
void lstm_forward_float(const void* call) { lstm_forward(*static_cast<const Call<float>*>(call)); }
void lstm_forward_double(const void* call) { lstm_forward(*static_cast<const Call<double>*>(call)); }
void lstm_backward_float(const void* call) { lstm_backward(*static_cast<const Call<float>*>(call)); }
void lstm_backward_double(const void* call) { lstm_backward(*static_cast<const Call<double>*>(call)); }
void gru_forward_float(const void* call) { gru_forward(*static_cast<const Call<float>*>(call)); }
void gru_forward_double(const void* call) { gru_forward(*static_cast<const Call<double>*>(call)); }
void gru_backward_float(const void* call) { gru_backward(*static_cast<const Call<float>*>(call)); }
void gru_backward_double(const void* call) { gru_backward(*static_cast<const Call<double>*>(call)); }
}
