// Linear maps of groups of rows, each with weights of its own, on request after a layer normalisation of the rows.
// Rows are read in panels, channels first and rows along the lanes: x^T. Every product is then W x^T, with a number of W for a vector of rows:
// nothing of the weights is copied, and a few rows cost little. The gradient of a weight has channels along the lanes.
#include <memory>

#include "lanes.h"

namespace {

constexpr int TALL = BYTES == 64 ? 10 : 5;       // rows of a tile, whose sums stay in registers
constexpr Index FLOPS_WORTH_A_THREAD = 1 << 23;  // some 100 microseconds
constexpr Index BLOCK = 40, ROWS = 64;           // channels of a weight's gradient in one task, and how many rows it reads at once
template <class T> constexpr Index PANEL = 2 * LANES<T>;

template <class T> struct Group {
    const T *weight, *bias, *scale, *shift;
    Index start, size;                          // rows of x
    T *d_weight, *d_bias, *d_scale, *d_shift;
};

// The first fields of a call; the groups follow.
template <class T> struct Call {
    const T* x;        // (N, C), by the stride of its rows
    Index x_row;
    T* y;              // (sum of sizes, C'), by its strides: the result; going back its gradient
    Index y_row, y_channel;
    const T* onto;     // what the result is added to, laid out as it
    T* d_x;            // (N, C), without gaps
    T* normal;         // (sum of sizes, C), without gaps: the normalised rows, where somebody wants to read them too
    Index rows, width, wide, groups, normalised, threads;
    const Group<T>* group() const { return reinterpret_cast<const Group<T>*>(this + 1); }
    Index helpful_threads(Index products) const {
        Index work = 0;
        for (Index g = 0; g < groups; ++g) work += 2 * products * group()[g].size * width * wide;
        return std::min(threads, 1 + work / FLOPS_WORTH_A_THREAD);
    }
};

template <class T> Index whole(Index n) { return (n + LANES<T> - 1) / LANES<T> * LANES<T>; }

template <class T> using Space = std::unique_ptr<T[]>;
template <class T> Space<T> space(Index n) { return Space<T>(new T[n]); }

// Turns L vectors, the rows of a square, into its columns.
template <class T, int W = 1> inline void turn(V<T>* v) {
    constexpr int L = LANES<T>;
    if constexpr (W < L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
            if (!(i & W)) {
                const V<T> x = v[i], y = v[i + W];
                v[i] = pick<T>(x, y, Lower<L, W>{}, Numbers<T>{});
                v[i + W] = pick<T>(x, y, Upper<L, W>{}, Numbers<T>{});
            }
        turn<T, 2 * W>(v);
    }
}

// `count` rows of `width` numbers to a panel (width, PANEL); the lanes beyond repeat the last row.
template <class T> void gather(const T* from, Index row, Index count, Index width, T* panel) {
    constexpr int L = LANES<T>;
    const Index last = count - 1;
    for (Index r = 0; r < count; r += L) {
        if (width < L) {
            for (Index k = 0; k < width; ++k)
                for (int l = 0; l < L; ++l) panel[k * PANEL<T> + r + l] = from[std::min(r + l, last) * row + k];
            continue;
        }
        for (Index k = 0; k < width; k += L) {
            const Index first = std::min(k, width - L);  // the last square overlaps the one before
            V<T> v[L];
#pragma GCC unroll 16
            for (int l = 0; l < L; ++l) v[l] = load(from + std::min(r + l, last) * row + first);
            turn<T>(v);
#pragma GCC unroll 16
            for (int l = 0; l < L; ++l) store(panel + (first + l) * PANEL<T> + r, v[l]);
        }
    }
}

// Columns (width, rows) by a stride, as `gather`.
template <class T> void gather_columns(const T* from, Index column, Index count, Index width, T* panel) {
    for (Index k = 0; k < width; ++k) {
        std::copy(from + k * column, from + k * column + count, panel + k * PANEL<T>);
        for (Index r = count; r < whole<T>(count); ++r) panel[k * PANEL<T> + r] = panel[k * PANEL<T>];
    }
}

// The inverse of `gather`: to[r] = onto[r] + the row r of the panel; `to` may be `onto`.
template <class T> void scatter(const T* panel, Index count, Index width, T* to, const T* onto, Index row) {
    constexpr int L = LANES<T>;
    for (Index r = 0; r < count; r += L) {
        const int rows = std::min<Index>(L, count - r);
        if (width < L) {
            for (int l = 0; l < rows; ++l)
                for (Index k = 0; k < width; ++k) {
                    const Index at = (r + l) * row + k;
                    to[at] = panel[k * PANEL<T> + r + l] + (onto ? onto[at] : T(0));
                }
            continue;
        }
        for (Index k = 0; k < width; k += L) {
            const Index first = std::min(k, width - L);
            const I<T> fresh = count_up<T>() >= typename Lanes<T>::Int(k - first);  // which columns the square before has not written
            V<T> v[L];
#pragma GCC unroll 16
            for (int l = 0; l < L; ++l) v[l] = load(panel + (first + l) * PANEL<T> + r);
            turn<T>(v);
            for (int l = 0; l < rows; ++l) {
                const Index at = (r + l) * row + first;
                if (!onto) store(to + at, v[l]);
                else if (onto == to) store(to + at, load(onto + at) + keep<T>(fresh, v[l]));
                else store(to + at, load(onto + at) + v[l]);
            }
        }
    }
}

// out[m][n] = (bias[m] or 0, or what stands there) + sum over k of w[m * w_row + k * w_step] panel[k * pitch + n], N vectors wide.
template <class T, int M, int N>
inline void tile(const T* w, Index w_row, Index w_step, const T* panel, Index pitch, Index steps, T* out, const T* bias, bool add) {
    constexpr int L = LANES<T>;
    V<T> sums[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sums[m][n] = (bias ? bias[m] : T(0)) - V<T>{};  // less zero: an addition would have to be done, since -0 + 0 = 0
    for (Index k = 0; k < steps; ++k) {
        V<T> own[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) own[n] = load(panel + k * pitch + n * L);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const T factor = w[m * w_row + k * w_step];
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) sums[m][n] += factor * own[n];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) {
            T* at = out + m * pitch + n * L;
            store(at, add ? load(at) + sums[m][n] : sums[m][n]);
        }
}

template <class T, int N>
void strip(const T* w, Index w_row, Index w_step, const T* panel, Index pitch, Index steps, Index rows, T* out, const T* bias, bool add) {
    Index m = 0;
    auto some = [&](auto count) {
        constexpr int M = decltype(count)::value;
        for (; m + M <= rows; m += M)
            tile<T, M, N>(w + m * w_row, w_row, w_step, panel, pitch, steps, out + m * pitch, bias ? bias + m : nullptr, add);
    };
    some(std::integral_constant<int, TALL>{});
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 1>{});
}

// out (rows, vectors), of the same pitch as the panel (steps, vectors): bias + w panel, or out + w panel.
template <class T>
void product(const T* w, Index w_row, Index w_step, const T* panel, Index pitch, Index steps, Index rows, Index vectors, T* out,
             const T* bias = nullptr, bool add = false) {
    Index v = 0;
    for (; v + 2 <= vectors; v += 2)
        strip<T, 2>(w, w_row, w_step, panel + v * LANES<T>, pitch, steps, rows, out + v * LANES<T>, bias, add);
    if (v < vectors) strip<T, 1>(w, w_row, w_step, panel + v * LANES<T>, pitch, steps, rows, out + v * LANES<T>, bias, add);
}

template <class T> struct Normal {
    V<T> mean[2], inverse[2];  // of the rows of a panel
};

// Normalises the rows of a panel in place.
template <class T> Normal<T> normalise(T* panel, Index width, Index vectors, T eps) {
    constexpr int L = LANES<T>;
    Normal<T> found;
    for (Index v = 0; v < vectors; ++v) {
        T* own = panel + v * L;
        V<T> mean{}, square{};
        for (Index k = 0; k < width; ++k) mean += load(own + k * PANEL<T>);
        mean /= T(width);
        for (Index k = 0; k < width; ++k) {
            const V<T> centred = load(own + k * PANEL<T>) - mean;
            square += centred * centred;
        }
        V<T> inverse = square / T(width) + eps;
        for (int l = 0; l < L; ++l) inverse[l] = T(1) / std::sqrt(inverse[l]);
        for (Index k = 0; k < width; ++k) store(own + k * PANEL<T>, (load(own + k * PANEL<T>) - mean) * inverse);
        found.mean[v] = mean, found.inverse[v] = inverse;
    }
    return found;
}

template <class T> struct Panels {
    struct At {
        Index group, first, count, place;  // place: of its first row in the result
    };
    std::vector<At> all;
    explicit Panels(const Call<T>& c) {
        Index place = 0;
        for (Index g = 0; g < c.groups; place += c.group()[g++].size)
            for (Index r = 0; r < c.group()[g].size; r += PANEL<T>)
                all.push_back({g, c.group()[g].start + r, std::min(PANEL<T>, c.group()[g].size - r), place + r});
    }
};

// Scales and shifts the channels of a panel.
template <class T> void scale_and_shift(T* panel, Index width, Index vectors, const T* scale, const T* shift) {
    for (Index k = 0; k < width; ++k)
        for (Index v = 0; v < vectors; ++v) {
            T* at = panel + k * PANEL<T> + v * LANES<T>;
            store(at, load(at) * scale[k] + shift[k]);
        }
}

template <class T> void linear_forward(const Call<T>& c, double eps) {
    const Panels<T> panels(c);
    struct Memory {
        Space<T> x, y;
    };
    each<Memory>(panels.all.size(), c.helpful_threads(1), [&](Index task, Memory& m) {
        if (!m.x) m.x = space<T>(c.width * PANEL<T>), m.y = space<T>(c.wide * PANEL<T>);
        const auto at = panels.all[task];
        const Group<T>& group = c.group()[at.group];
        const Index vectors = whole<T>(at.count) / LANES<T>;
        gather(c.x + at.first * c.x_row, c.x_row, at.count, c.width, m.x.get());
        if (c.normalised) {
            normalise(m.x.get(), c.width, vectors, T(eps));
            scale_and_shift(m.x.get(), c.width, vectors, group.scale, group.shift);
            if (c.normal) scatter(m.x.get(), at.count, c.width, c.normal + at.place * c.width, static_cast<const T*>(nullptr), c.width);
        }
        product(group.weight, c.width, Index(1), m.x.get(), PANEL<T>, c.width, c.wide, vectors, m.y.get(), group.bias);
        if (c.y_channel == 1) {
            const Index to = at.place * c.y_row;
            scatter(m.y.get(), at.count, c.wide, c.y + to, c.onto ? c.onto + to : nullptr, c.y_row);
            return;
        }
        for (Index k = 0; k < c.wide; ++k) {
            const T* own = m.y.get() + k * PANEL<T>;
            std::copy(own, own + at.count, c.y + k * c.y_channel + at.place);
        }
    });
}

// From the gradient of what `scale_and_shift` made of normalised rows to that of the rows.
template <class T> void back_through(const Normal<T>& normal, const T* x, T* d_x, Index width, Index vectors, const T* scale) {
    for (Index v = 0; v < vectors; ++v, x += LANES<T>, d_x += LANES<T>) {
        V<T> total{}, along{};
        for (Index k = 0; k < width; ++k) {
            const V<T> d = load(d_x + k * PANEL<T>) * scale[k];
            store(d_x + k * PANEL<T>, d);
            total += d, along += d * load(x + k * PANEL<T>);
        }
        total /= T(width), along /= T(width);
        for (Index k = 0; k < width; ++k) {
            T* at = d_x + k * PANEL<T>;
            store(at, (load(at) - total - load(x + k * PANEL<T>) * along) * normal.inverse[v]);
        }
    }
}

// The gradient of the rows; `linear`: there is a map, after the normalisation if there is one.
// Tasks are windows of rows, since several groups may read a row. Keeps mean and inverse deviation of the rows.
template <class T> void back_to_rows(const Call<T>& c, bool linear, T eps, T* mean, T* inverse) {
    constexpr int L = LANES<T>;
    struct Memory {
        Space<T> x, y, d_x;
    };
    each<Memory>((c.rows + PANEL<T> - 1) / PANEL<T>, c.helpful_threads(1), [&](Index task, Memory& m) {
        if (!m.x) m.x = space<T>(c.width * PANEL<T>), m.y = space<T>(c.wide * PANEL<T>), m.d_x = space<T>(c.width * PANEL<T>);
        const Index from = task * PANEL<T>, to = std::min(c.rows, from + PANEL<T>);
        std::fill(c.d_x + from * c.width, c.d_x + to * c.width, T(0));
        Index place = 0;
        for (Index g = 0; g < c.groups; place += c.group()[g++].size) {
            const Group<T>& group = c.group()[g];
            const Index first = std::max(from, group.start), count = std::min(to, group.start + group.size) - first;
            if (count <= 0) continue;
            const Index vectors = whole<T>(count) / L;
            const T* y = c.y + (place + first - group.start) * c.y_row;
            T* panel = linear ? m.y.get() : m.d_x.get();
            if (c.y_channel == 1) gather(y, c.y_row, count, c.wide, panel);
            else gather_columns(y, c.y_channel, count, c.wide, panel);
            if (linear) product(group.weight, Index(1), c.width, m.y.get(), PANEL<T>, c.wide, c.width, vectors, m.d_x.get());
            if (c.normalised) {
                gather(c.x + first * c.x_row, c.x_row, count, c.width, m.x.get());
                const Normal<T> normal = normalise(m.x.get(), c.width, vectors, eps);
                for (Index r = 0; r < count; ++r) mean[first + r] = normal.mean[r / L][r % L], inverse[first + r] = normal.inverse[r / L][r % L];
                back_through(normal, m.x.get(), m.d_x.get(), c.width, vectors, group.scale);
            }
            T* d_x = c.d_x + first * c.width;
            scatter(m.d_x.get(), count, c.width, d_x, static_cast<const T*>(d_x), c.width);
        }
    });
}

// The gradients of a group's parameters: those of the normalised rows' weight first, with one more column, of ones, for the bias.
template <class T> void back_to_parameters(const Call<T>& c, const T* mean, const T* inverse) {
    struct At {
        Index group, place, first, count;  // channels of the result
    };
    std::vector<At> tasks;
    Index place = 0;
    for (Index g = 0; g < c.groups; place += c.group()[g++].size)
        for (Index o = 0; o < c.wide; o += BLOCK) tasks.push_back({g, place, o, std::min(BLOCK, c.wide - o)});
    struct Memory {
        Space<T> x, d;
    };
    const Index pitch = whole<T>(c.width + 1);
    const Space<T> totals = space<T>(c.groups * c.wide);
    each<Memory>(tasks.size(), c.helpful_threads(1), [&](Index task, Memory& m) {
        if (!m.x) m.x = space<T>(ROWS * pitch), m.d = space<T>(BLOCK * pitch);
        const At at = tasks[task];
        const Group<T>& group = c.group()[at.group];
        std::fill(m.d.get(), m.d.get() + at.count * pitch, T(0));
        for (Index r = 0; r < group.size; r += ROWS) {
            const Index count = std::min(ROWS, group.size - r);
            for (Index i = 0; i < count; ++i) {
                const Index row = group.start + r + i;
                const T* __restrict from = c.x + row * c.x_row;
                T* __restrict to = m.x.get() + i * pitch;
                const T less = c.normalised ? mean[row] : T(0), factor = c.normalised ? inverse[row] : T(1);
                for (Index k = 0; k < c.width; ++k) to[k] = (from[k] - less) * factor;
                std::fill(to + c.width, to + pitch, T(1));
            }
            const T* y = c.y + (at.place + r) * c.y_row + at.first * c.y_channel;
            product(y, c.y_channel, c.y_row, m.x.get(), pitch, count, at.count, pitch / LANES<T>, m.d.get(), static_cast<const T*>(nullptr), true);
        }
        for (Index o = 0; o < at.count; ++o) {
            const T* from = m.d.get() + o * pitch;
            std::copy(from, from + c.width, group.d_weight + (at.first + o) * c.width);
            totals[at.group * c.wide + at.first + o] = from[c.width];
        }
    });
    for (Index g = 0; g < c.groups; ++g) {
        const Group<T>& group = c.group()[g];
        const T* total = totals.get() + g * c.wide;
        if (group.d_bias) std::copy(total, total + c.wide, group.d_bias);
        if (!c.normalised) continue;
        std::fill(group.d_scale, group.d_scale + c.width, T(0));
        std::fill(group.d_shift, group.d_shift + c.width, T(0));
        T *__restrict d_scale = group.d_scale, *__restrict d_shift = group.d_shift;
        const T *__restrict scale = group.scale, *__restrict shift = group.shift;
        for (Index o = 0; o < c.wide; ++o) {
            const T* __restrict weight = group.weight + o * c.width;
            T* __restrict d = group.d_weight + o * c.width;
            const T own = total[o];
            for (Index k = 0; k < c.width; ++k) {
                d_scale[k] += d[k] * weight[k];
                d_shift[k] += own * weight[k];
                d[k] = d[k] * scale[k] + own * shift[k];
            }
        }
    }
}

template <class T> void linear_backward(const Call<T>& c, double eps) {
    const Space<T> mean = space<T>(c.normalised ? c.rows : 0), inverse = space<T>(c.normalised ? c.rows : 0);
    back_to_rows(c, true, T(eps), mean.get(), inverse.get());
    back_to_parameters(c, mean.get(), inverse.get());
}

template <class T> void norm_forward(const Call<T>& c, double eps) {
    const Panels<T> panels(c);
    struct Memory {
        Space<T> x;
    };
    each<Memory>(panels.all.size(), c.helpful_threads(1), [&](Index task, Memory& m) {
        if (!m.x) m.x = space<T>(c.width * PANEL<T>);
        const auto at = panels.all[task];
        const Index vectors = whole<T>(at.count) / LANES<T>;
        gather(c.x + at.first * c.x_row, c.x_row, at.count, c.width, m.x.get());
        normalise(m.x.get(), c.width, vectors, T(eps));
        scale_and_shift(m.x.get(), c.width, vectors, c.group()[at.group].scale, c.group()[at.group].shift);
        scatter(m.x.get(), at.count, c.width, c.y + at.place * c.y_row, static_cast<const T*>(nullptr), c.y_row);
    });
}

template <class T> void norm_backward(const Call<T>& c, double eps) {
    const Space<T> mean = space<T>(c.rows), inverse = space<T>(c.rows), sums = space<T>(2 * c.width);
    back_to_rows(c, false, T(eps), mean.get(), inverse.get());
    Index place = 0;
    for (Index g = 0; g < c.groups; place += c.group()[g++].size) {
        const Group<T>& group = c.group()[g];
        T *__restrict d_scale = group.d_scale, *__restrict d_shift = group.d_shift;
        std::fill(d_scale, d_scale + c.width, T(0));
        std::fill(d_shift, d_shift + c.width, T(0));
        for (Index r = 0; r < group.size; r += ROWS) {  // sums of sums: one long one would round more
            std::fill(sums.get(), sums.get() + 2 * c.width, T(0));
            T *__restrict scale = sums.get(), *__restrict shift = scale + c.width;
            for (Index i = r; i < std::min(r + ROWS, group.size); ++i) {
                const Index row = group.start + i;
                const T *__restrict x = c.x + row * c.x_row, *__restrict y = c.y + (place + i) * c.y_row;
                const T less = mean[row], factor = inverse[row];
                for (Index k = 0; k < c.width; ++k) {
                    scale[k] += (x[k] - less) * factor * y[k];
                    shift[k] += y[k];
                }
            }
            for (Index k = 0; k < c.width; ++k) d_scale[k] += scale[k], d_shift[k] += shift[k];
        }
    }
}

// The end of an attention layer: z = carried + O a + o, y = z + C relu(E norm(z) + e) + c. What lies between stays in the cache.
template <class T> struct Block {
    const T *out, *out_bias, *scale, *shift, *expand, *expand_bias, *contract, *contract_bias;
    Index size;  // rows; they follow those of the block before
};

// The first fields of a call; the blocks follow.
template <class T> struct BlocksCall {
    const T* a;  // (N, inner), by its strides, one of which is 1
    Index a_row, a_channel;
    const T* carried;  // (N, C), by the stride of its rows
    Index carried_row;
    T* y;  // (N, C), without gaps
    Index inner, width, wide, blocks, threads;
    const Block<T>* block() const { return reinterpret_cast<const Block<T>*>(this + 1); }
};

template <class T> void blocks_forward(const BlocksCall<T>& c, double eps) {
    struct At {
        Index block, first, count;
    };
    std::vector<At> panels;
    Index rows = 0;
    for (Index b = 0; b < c.blocks; rows += c.block()[b++].size)
        for (Index r = 0; r < c.block()[b].size; r += PANEL<T>) panels.push_back({b, rows + r, std::min(PANEL<T>, c.block()[b].size - r)});
    struct Memory {
        Space<T> a, z, normal, hidden;
    };
    const Index threads = std::min(c.threads, 1 + 2 * rows * c.width * (c.inner + 2 * c.wide) / FLOPS_WORTH_A_THREAD);
    each<Memory>(panels.size(), threads, [&](Index task, Memory& m) {
        constexpr Index P = PANEL<T>, L = LANES<T>;
        if (!m.a) m.a = space<T>(c.inner * P), m.z = space<T>(c.width * P), m.normal = space<T>(c.width * P), m.hidden = space<T>(c.wide * P);
        const At at = panels[task];
        const Block<T>& b = c.block()[at.block];
        const Index vectors = whole<T>(at.count) / L;
        T *a = m.a.get(), *z = m.z.get(), *normal = m.normal.get(), *hidden = m.hidden.get();
        if (c.a_channel == 1) gather(c.a + at.first * c.a_row, c.a_row, at.count, c.inner, a);
        else gather_columns(c.a + at.first, c.a_channel, at.count, c.inner, a);
        gather(c.carried + at.first * c.carried_row, c.carried_row, at.count, c.width, z);
        product(b.out, c.inner, Index(1), a, P, c.inner, c.width, vectors, normal, b.out_bias);
        for (Index k = 0; k < c.width; ++k)
            for (Index v = 0; v < vectors; ++v) {
                const V<T> sum = load(z + k * P + v * L) + load(normal + k * P + v * L);
                store(z + k * P + v * L, sum);
                store(normal + k * P + v * L, sum);
            }
        normalise(normal, c.width, vectors, T(eps));
        scale_and_shift(normal, c.width, vectors, b.scale, b.shift);
        product(b.expand, c.width, Index(1), normal, P, c.width, c.wide, vectors, hidden, b.expand_bias);
        for (Index k = 0; k < c.wide; ++k)
            for (Index v = 0; v < vectors; ++v) {
                const V<T> x = load(hidden + k * P + v * L);
                store(hidden + k * P + v * L, x < T(0) ? V<T>{} : x);  // NaN stays NaN
            }
        product(b.contract, c.wide, Index(1), hidden, P, c.wide, c.width, vectors, normal, b.contract_bias);
        for (Index k = 0; k < c.width; ++k)
            for (Index v = 0; v < vectors; ++v) store(z + k * P + v * L, load(z + k * P + v * L) + load(normal + k * P + v * L));
        scatter(z, at.count, c.width, c.y + at.first * c.width, static_cast<const T*>(nullptr), c.width);
    });
}

}  // namespace

extern "C" {
void grouped_blocks_forward_float(const void* call, double eps) { blocks_forward(*static_cast<const BlocksCall<float>*>(call), eps); }
void grouped_blocks_forward_double(const void* call, double eps) { blocks_forward(*static_cast<const BlocksCall<double>*>(call), eps); }
void grouped_linear_forward_float(const void* call, double eps) { linear_forward(*static_cast<const Call<float>*>(call), eps); }
void grouped_linear_forward_double(const void* call, double eps) { linear_forward(*static_cast<const Call<double>*>(call), eps); }
void grouped_linear_backward_float(const void* call, double eps) { linear_backward(*static_cast<const Call<float>*>(call), eps); }
void grouped_linear_backward_double(const void* call, double eps) { linear_backward(*static_cast<const Call<double>*>(call), eps); }
void grouped_norm_forward_float(const void* call, double eps) { norm_forward(*static_cast<const Call<float>*>(call), eps); }
void grouped_norm_forward_double(const void* call, double eps) { norm_forward(*static_cast<const Call<double>*>(call), eps); }
void grouped_norm_backward_float(const void* call, double eps) { norm_backward(*static_cast<const Call<float>*>(call), eps); }
void grouped_norm_backward_double(const void* call, double eps) { norm_backward(*static_cast<const Call<double>*>(call), eps); }
}
