// Vectors of as many numbers as the processor computes at once, by the compiler's vector extensions; exponentials; work by threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

#define EACH(N) _Pragma("GCC unroll 8") for (int n = 0; n < N; ++n)  // of N vectors in registers

using Index = int64_t;

template <class T> struct Lanes;

template <> struct Lanes<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    using Int = int32_t;
    static constexpr int mantissa = 23, degree = 6;
    static constexpr float round = 12582912.f, least = -126.f;  // 1.5 x 2^23: adding it leaves the nearest integer in the low bits
    static constexpr float power[degree + 1] = {  // fitted to 2^x on [-1/2, 1/2]: least squares of the relative error, which is below 3e-9
        1.f, 0.69314718f, 0.24022648f, 0.05550329f, 0.0096183736f, 0.0013399848f, 0.00015370705f};
};

template <> struct Lanes<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    using Int = int64_t;
    static constexpr int mantissa = 52, degree = 13;
    static constexpr double round = 6755399441055744., least = -1022.;
    static constexpr double power[degree + 1] = {  // ln(2)^n / n!
        1., 0.6931471805599453, 0.24022650695910072, 0.05550410866482158, 0.009618129107628477, 0.0013333558146428443,
        0.00015403530393381608, 1.5252733804059841e-05, 1.321548679014431e-06, 1.0178086009239701e-07, 7.054911620801123e-09,
        4.4455382718708116e-10, 2.567843599348821e-11, 1.3691488853904128e-12};
};

template <class T> using V = typename Lanes<T>::V;
template <class T> using I = typename Lanes<T>::I;
template <class T> constexpr int LANES = BYTES / sizeof(T);

// An array whose vectors lie in one line of the cache each: one that lies in two is read twice.
template <class T> struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class Other> Aligned(const Aligned<Other>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{BYTES})); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t{BYTES}); }
    template <class Other> bool operator==(const Aligned<Other>&) const { return true; }
    template <class Other> bool operator!=(const Aligned<Other>&) const { return false; }
};
template <class T> using Array = std::vector<T, Aligned<T>>;

template <class T> inline V<T> load(const T* from) {
    V<T> v;
    std::memcpy(&v, from, BYTES);
    return v;
}

template <class T> inline void store(T* to, V<T> v) { std::memcpy(to, &v, BYTES); }

template <class T> inline V<T> all(T value) { return value - V<T>{}; }  // `+` would have to turn -0 into 0: one more instruction

template <class T> inline V<T> keep(I<T> where, V<T> v) { return (V<T>)((I<T>)v & where); }  // zero elsewhere, whatever stood there

template <class T> inline I<T> count_up() {
    I<T> v{};
    for (int l = 0; l < LANES<T>; ++l) v[l] = l;
    return v;
}

template <class T> using Numbers = std::make_integer_sequence<int, LANES<T>>;

// Lane n of the result is lane From(n) of x and y, which stand side by side.
template <class T, class From, int... N> inline V<T> pick(V<T> x, V<T> y, From from, std::integer_sequence<int, N...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, y, decltype(from)::at(N)...);
#else
    return __builtin_shuffle(x, y, I<T>{decltype(from)::at(N)...});
#endif
}

template <int W> struct Across { static constexpr int at(int n) { return n ^ W; } };
template <int L, int W> struct Lower { static constexpr int at(int n) { return n & W ? L + n - W : n; } };
template <int L, int W> struct Upper { static constexpr int at(int n) { return n & W ? L + n : n + W; } };

template <class T, int W = LANES<T> / 2> inline T sum(V<T> v) {
    v += pick<T>(v, v, Across<W>{}, Numbers<T>{});
    if constexpr (W > 1) return sum<T, W / 2>(v);
    return v[0];
}

template <class T, int W = LANES<T> / 2> inline T largest(V<T> v) {
    const V<T> other = pick<T>(v, v, Across<W>{}, Numbers<T>{});
    v = other > v ? other : v;
    if constexpr (W > 1) return largest<T, W / 2>(v);
    return v[0];
}

// The sums of N vectors, by folding two into one, W lanes at a time: a third of the work of N single sums. `v` is overwritten.
template <class T, int N, int W = 1, int LEFT = N> inline void sums(V<T>* v, T* to) {
    constexpr int L = LANES<T>;
    if constexpr (N > L) {
        sums<T, L>(v, to);
        sums<T, N - L>(v + L, to + L);
    } else if constexpr (W < L) {
#pragma GCC unroll 16
        for (int n = 0; n < LEFT; n += 2) {
            const V<T> x = v[n], y = n + 1 < LEFT ? v[n + 1] : V<T>{};
            v[n / 2] = pick<T>(x, y, Lower<L, W>{}, Numbers<T>{}) + pick<T>(x, y, Upper<L, W>{}, Numbers<T>{});
        }
        sums<T, N, 2 * W, (LEFT + 1) / 2>(v, to);
    } else {
        std::memcpy(to, v, N * sizeof(T));
    }
}

// 2^x of N vectors for x below 127; what is below `least` counts as `least`, and NaN stays NaN. The vectors are computed side by side, since
// each waits long for its own last result.
template <class T, int N> inline __attribute__((always_inline)) void exp2(V<T>* x) {
    using P = Lanes<T>;
    V<T> shifted[N], p[N];
    EACH(N) x[n] = x[n] < P::least ? all<T>(P::least) : x[n];
    EACH(N) shifted[n] = x[n] + P::round;
    EACH(N) x[n] = x[n] - (shifted[n] - P::round);  // within half a unit
    EACH(N) p[n] = all<T>(P::power[P::degree]);
#pragma GCC unroll 16
    for (int k = P::degree - 1; k >= 0; --k) EACH(N) p[n] = p[n] * x[n] + P::power[k];
    EACH(N) x[n] = (V<T>)((I<T>)p[n] + ((I<T>)shifted[n] << P::mantissa));
}

template <class T> inline V<T> exp2(V<T> x) {
    exp2<T, 1>(&x);
    return x;
}

// The logarithm of normal x > 0 to base 2, to an absolute error of a few roundings: a parabola between powers of two, and Newton's steps.
// Infinity gives NaN, and NaN stays NaN.
template <class T> inline V<T> log2(V<T> x) {
    using P = Lanes<T>;
    constexpr typename P::Int bias = sizeof(T) == 4 ? 127 : 1023, one = bias << P::mantissa, below = ((typename P::Int)1 << P::mantissa) - 1;
    const V<T> m = (V<T>)(((I<T>)x & below) | one);  // x / 2^n, from 1 to 2
    const V<T> n = __builtin_convertvector(((I<T>)x >> P::mantissa) - bias, V<T>);
    V<T> y = n + ((T(-0.34484843) * m + T(2.02466578)) * m - T(1.67487759));
#pragma GCC unroll 4
    for (int step = 0; step < (sizeof(T) == 4 ? 2 : 3); ++step) {
        const V<T> whole = n - y;  // x 2^-y = m 2^(n - y), without leaving the range
        y += (m * exp2<T>(whole) - 1) * T(1.4426950408889634);
    }
    return y + (x - x);
}

// The probability that a standard normal variable exceeds t >= 0, of N vectors.
template <int N> inline __attribute__((always_inline)) void normal_tail(const V<float>* t, V<float>* tail) {  // 2^polynomial(t), as in predictive/triton_gelu.py
    constexpr float from[9] = {-2.2759882085665595e-06f, 3.296929207863286e-05f, -0.00015728428843431175f, -0.00020246696658432484f,
                               0.007142767775803804f, -0.052546426653862f, -0.45919305086135864f, -1.1511069536209106f, -0.9999999403953552f};
    EACH(N) tail[n] = all<float>(from[0]);
#pragma GCC unroll 16
    for (int k = 1; k < 9; ++k) EACH(N) tail[n] = tail[n] * t[n] + from[k];
    exp2<float, N>(tail);
}

template <int N> inline __attribute__((always_inline)) void normal_tail(const V<double>* t, V<double>* tail) {
    for (int n = 0; n < N; ++n)
        for (int l = 0; l < LANES<double>; ++l) tail[n][l] = 0.5 * std::erfc(t[n][l] * 0.7071067811865476);
}

constexpr Index WORTH_A_THREAD = 1 << 20;  // edges by heads of plain attention: about the time in which a thread starts, ten times

// Does `work(task, memory)` for every task, in any order, by some threads with memory of their own.
template <class Memory, class Work> void each(Index tasks, Index threads, Work work) {
    std::atomic<Index> next{0};
    auto run = [&] {
        Memory memory;
        for (Index task; (task = next.fetch_add(1)) < tasks;) work(task, memory);
    };
    std::vector<std::thread> others;
    for (Index t = 1; t < std::min(threads, tasks); ++t) others.emplace_back(run);
    run();
    for (auto& other : others) other.join();
}

// A tensor of rows (N, K, D), by its strides.
template <class T> struct Rows {
    T* data;
    Index row, head, channel;
    T& at(Index n, Index k, Index d) const { return data[n * row + k * head + d * channel]; }

    // One channel of `count` rows from n on; rows that lie side by side are copied by whole vectors.
    void get(Index n, Index k, Index d, Index count, T scale, T* to) const {
        const T* from = &at(n, k, d);
        if (row == 1)
            for (Index i = 0; i < count; ++i) to[i] = from[i] * scale;
        else
            for (Index i = 0; i < count; ++i) to[i] = from[i * row] * scale;
    }
    void put(Index n, Index k, Index d, Index count, T scale, const T* from) const {
        T* to = &at(n, k, d);
        if (row == 1)
            for (Index i = 0; i < count; ++i) to[i] = from[i] * scale;
        else
            for (Index i = 0; i < count; ++i) to[i * row] = from[i] * scale;
    }
};
