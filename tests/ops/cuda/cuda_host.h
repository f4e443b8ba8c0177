// Runs a CUDA kernel as plain C++, to test its arithmetic and its memory accesses without a GPU.
//
// Every CUDA thread is a fiber; blocks run one after another. Shuffles, votes and barriers wait as on a GPU, and a kernel that diverges
// at one of them aborts. `cuda_host::reversed` runs the threads in the opposite order: a result that changes with it is a race.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static  // keeps its red zones
#else
#define __shared__ static __attribute__((section("cuda_shared")))  // can be found, to be poisoned
extern char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));
#endif

namespace cuda_host {

struct Index {
  unsigned x, y;
};

struct Warp {
  int alive = 0, waiting = 0;
  unsigned long turn = 0;
  uint64_t slots[2][32];  // two, so that a lane may write for the next exchange while others still read
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  unsigned index;
  bool done;
};

constexpr size_t STACK = 1 << 16;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline Thread* current;
inline Index block;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline int alive, waiting;
inline unsigned long turn;
inline bool reversed = false;

inline void pause() { swapcontext(&current->context, &scheduler); }
inline void start() {
  body();
  current->done = true;
}
inline Warp& warp() { return warps[current->index / 32]; }
inline unsigned lane() { return current->index % 32; }

inline void wait_for_warp() {
  Warp& w = warp();
  const unsigned long mine = w.turn;
  if (++w.waiting == 32) {
    w.waiting = 0;
    ++w.turn;
  }
  while (w.turn == mine) pause();
}

inline void wait_for_block() {
  const unsigned long mine = turn;
  if (++waiting == alive) {
    waiting = 0;
    ++turn;
  }
  while (turn == mine) pause();
}

template <typename T>
T exchange(T mine, unsigned from) {
  static_assert(sizeof(T) <= 8);
  Warp& w = warp();
  uint64_t* slots = w.slots[w.turn % 2];
  std::memcpy(&slots[lane()], &mine, sizeof(T));
  wait_for_warp();
  T other;
  std::memcpy(&other, &slots[from % 32], sizeof(T));
  return other;
}

inline void run_block(unsigned size) {
  threads.resize(size);
  warps.assign((size + 31) / 32, Warp());
  alive = size;
  waiting = 0;
#ifndef __SANITIZE_ADDRESS__
  if (__start_cuda_shared) std::memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);  // NaN
#endif
  for (unsigned t = 0; t < size; ++t) {
    Thread& thread = threads[t];
    thread.index = t;
    thread.done = false;
    if (!thread.stack) thread.stack.reset(new char[STACK]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = STACK;
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, start, 0);
  }
  while (alive) {
    unsigned long before = turn + size - alive;
    for (auto& w : warps) before += w.turn;
    for (unsigned t = 0; t < size; ++t) {
      current = &threads[reversed ? size - 1 - t : t];
      if (current->done) continue;
      swapcontext(&scheduler, &current->context);
      if (current->done) --alive;
    }
    unsigned long after = turn + size - alive;
    for (auto& w : warps) after += w.turn;
    if (alive && after == before) {
      std::fprintf(stderr, "cuda_host: threads diverged at a barrier or a shuffle\n");
      std::abort();
    }
  }
}

template <typename... A, size_t... I>
void launch(void (*kernel)(A...), unsigned grid_x, unsigned grid_y, unsigned size, void** parameters, std::index_sequence<I...>) {
  body = [=] { kernel(*static_cast<std::remove_reference_t<A>*>(parameters[I])...); };
  for (unsigned y = 0; y < grid_y; ++y)
    for (unsigned x = 0; x < grid_x; ++x) {
      block = {x, y};
      run_block(size);
    }
}

// Takes its parameters as cuLaunchKernel does: an array of pointers to them.
template <typename... A>
void launch(void (*kernel)(A...), unsigned grid_x, unsigned grid_y, unsigned size, void** parameters) {
  launch(kernel, grid_x, grid_y, size, parameters, std::index_sequence_for<A...>());
}

}  // namespace cuda_host

#define threadIdx (cuda_host::Index{cuda_host::current->index, 0})
#define blockIdx cuda_host::block

inline void __syncthreads() { cuda_host::wait_for_block(); }
template <typename T>
T __shfl_sync(unsigned, T v, int from) {
  return cuda_host::exchange(v, from);
}
template <typename T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  return cuda_host::exchange(v, cuda_host::lane() ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  cuda_host::Warp& w = cuda_host::warp();
  uint64_t* slots = w.slots[w.turn % 2];
  slots[cuda_host::lane()] = mine;
  cuda_host::wait_for_warp();
  unsigned votes = 0;
  for (int l = 0; l < 32; ++l) votes |= (unsigned)slots[l] << l;
  return votes;
}
inline int __ffs(unsigned v) { return __builtin_ffs(v); }
inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline float __int_as_float(int v) { return __uint_as_float(v); }
inline unsigned __float_as_uint(float f) {
  unsigned v;
  std::memcpy(&v, &f, 4);
  return v;
}
