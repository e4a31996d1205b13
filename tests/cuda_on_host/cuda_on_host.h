// Runs CUDA kernels on the CPU, for tests: one fibre per CUDA thread, one block after another, all on
// one OS thread and so repeatable.
//
//   g++ -x c++ -std=c++17 -DCUDA_ON_HOST -include cuda_on_host.h kernel.cu
//
// With -fsanitize=address,undefined, accesses out of bounds (of __shared__ arrays too) and misaligned
// vector loads are found; with -fsanitize=thread, races between CUDA threads: every fibre is a thread
// to it, and barriers and warp operations alone order them. A barrier that not all threads reach, or a
// shuffle that a lane of its mask misses, aborts.
//
// CUDA_ON_HOST_ORDER: in what order the threads of a block run: 0 ascending (default), 1 descending,
// else shuffled by that seed. Results must not depend on it.
//
// Not modelled: streams (launches run at once), weak memory order, what __shared__ arrays hold at the
// start of a block, warps that run in lockstep, and everything that the kernels do not use.
#pragma once

#include <math.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __forceinline__ inline

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaErrorNotSupported = 801;
inline cudaError_t cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "not supported" : "no error"; }

namespace on_host {

// The emulator orders its own data; the race checker is to see the kernels' alone.
#define ON_HOST_UNSEEN __attribute__((noinline, no_sanitize("thread")))

constexpr size_t kStack = 256 << 10;
constexpr int kMostThreads = 1024;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Threads that meet. Two marks, used in turn: else one that arrives early for the next meeting would
// seem to be ordered before one that leaves this one late.
struct Meeting {
  int arrived = 0;
  unsigned generation = 0;
  char marks[2] = {};
};

struct Fibre {
  ucontext_t context;
  char* stack = nullptr;
  void* sanitizer = nullptr;
  bool done = false;
  uint64_t exchanged = 0;  // what this thread offers in a warp operation
};

struct Machine {
  ucontext_t scheduler;
  void* scheduler_sanitizer = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  std::vector<Fibre> fibres;
  std::vector<int> order;
  std::vector<uint32_t> warp_live;  // lanes that have not returned
  std::vector<Meeting> warp_meeting;
  Meeting block_meeting;
  std::function<void()> kernel;
  int threads = 0, current = 0, live = 0;
  uint64_t progress = 0;
  char started = 0, finished = 0;  // marks: before all threads, after all threads
  Index block, block_size, grid_size;
};

inline Machine machine;

ON_HOST_UNSEEN inline void release([[maybe_unused]] void* mark) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(mark);
#endif
}

ON_HOST_UNSEEN inline void acquire([[maybe_unused]] void* mark) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(mark);
#endif
}

[[noreturn]] ON_HOST_UNSEEN inline void die(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s, in block %u\n", what, machine.block.x);
  std::abort();
}

// Back to the scheduler, until it resumes this thread.
ON_HOST_UNSEEN inline void yield() {
  Machine& m = machine;
  Fibre& self = m.fibres[m.current];
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(self.done ? nullptr : &fake_stack, m.scheduler_stack, m.scheduler_stack_size);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(m.scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&self.context, &m.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

ON_HOST_UNSEEN inline void resume(int thread) {
  Machine& m = machine;
  m.current = thread;
  Fibre& fibre = m.fibres[thread];
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fibre.stack, kStack);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fibre.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&m.scheduler, &fibre.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

ON_HOST_UNSEEN inline void run_thread() {
  Machine& m = machine;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
  acquire(&m.started);
  m.kernel();
  release(&m.finished);
  m.fibres[m.current].done = true;
  m.warp_live[m.current / 32] &= ~(1u << m.current % 32);
  --m.live;
  ++m.progress;
  yield();
}

// Waits for all live threads of the block, or with a mask for those of this warp. As on a GPU, threads
// that have returned are not waited for.
ON_HOST_UNSEEN inline void meet(uint32_t mask) {
  Machine& m = machine;
  const int warp = m.current / 32;
  Meeting& meeting = mask ? m.warp_meeting[warp] : m.block_meeting;
  const unsigned generation = meeting.generation;
  char* mark = &meeting.marks[generation % 2];
  ++meeting.arrived;
  ++m.progress;
  release(mark);
  while (meeting.generation == generation) {
    const int expected = mask ? __builtin_popcount(mask & m.warp_live[warp]) : m.live;
    if (meeting.arrived >= expected) {
      meeting.arrived = 0;
      ++meeting.generation;
      ++m.progress;
    } else {
      yield();
    }
  }
  acquire(mark);
}

ON_HOST_UNSEEN inline void prepare(int threads) {
  Machine& m = machine;
  m.threads = threads;
  m.order.resize(threads);
  m.warp_live.assign((threads + 31) / 32, 0);
  m.warp_meeting.assign((threads + 31) / 32, Meeting{});
  if (m.fibres.empty()) m.fibres.resize(kMostThreads);  // never moved again: contexts hold pointers
  for (int i = 0; i < threads && !m.fibres[i].stack; ++i) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) die("no memory for stacks");
    m.fibres[i].stack = static_cast<char*>(stack);
#if defined(__SANITIZE_THREAD__)
    m.fibres[i].sanitizer = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_THREAD__)
  m.scheduler_sanitizer = __tsan_get_current_fiber();
#endif
}

ON_HOST_UNSEEN inline void start(Fibre& fibre) {
  fibre.done = false;
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack;
  fibre.context.uc_stack.ss_size = kStack;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, run_thread, 0);
}

ON_HOST_UNSEEN inline void run_block(int order, std::mt19937& random) {
  Machine& m = machine;
  m.live = m.threads;
  m.block_meeting = {};
  for (int i = 0; i < m.threads; ++i) {
    m.warp_live[i / 32] |= 1u << i % 32;
    m.order[i] = order == 1 ? m.threads - 1 - i : i;
    start(m.fibres[i]);
  }
  for (Meeting& meeting : m.warp_meeting) meeting = {};
  release(&m.started);
  while (m.live > 0) {
    const uint64_t before = m.progress;
    if (order > 1) std::shuffle(m.order.begin(), m.order.end(), random);
    for (const int i : m.order) {
      if (!m.fibres[i].done) resume(i);
    }
    if (m.live > 0 && m.progress == before) die("deadlock: not all threads reach a barrier or a warp operation");
  }
  acquire(&m.finished);
}

ON_HOST_UNSEEN inline void launch(unsigned blocks, unsigned threads, std::function<void()> kernel) {
  Machine& m = machine;
  if (blocks < 1 || blocks > 0x7fffffffu || threads < 1 || threads > kMostThreads) die("invalid launch configuration");
  const char* text = std::getenv("CUDA_ON_HOST_ORDER");
  const int order = text ? std::atoi(text) : 0;
  std::mt19937 random(order);
  m.kernel = std::move(kernel);
  m.grid_size = {blocks, 1, 1};
  m.block_size = {threads, 1, 1};
  prepare(static_cast<int>(threads));
  for (m.block = {}; m.block.x < blocks; ++m.block.x) run_block(order, random);
}

// Every lane of the mask offers a value, all meet, each takes the value of the lane that it names, all
// meet again. From a lane that takes no part comes all ones (NaN): on a GPU that is undefined.
template <class T>
T exchange(uint32_t mask, T value, int from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Machine& m = machine;
  const int warp = m.current / 32;
  if (!(mask >> m.current % 32 & 1)) die("a warp operation by a lane that its mask leaves out");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  m.fibres[m.current].exchanged = bits;
  meet(mask);
  const bool there = mask & m.warp_live[warp] & 1u << from;
  bits = there ? m.fibres[warp * 32 + from].exchanged : ~uint64_t(0);
  meet(mask);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ON_HOST_UNSEEN inline Index thread_index() { return {static_cast<unsigned>(machine.current), 0, 0}; }
inline int lane() { return machine.current % 32; }

}  // namespace on_host

#define threadIdx (on_host::thread_index())
#define blockIdx (on_host::machine.block)
#define blockDim (on_host::machine.block_size)
#define gridDim (on_host::machine.grid_size)

#define FM_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((void)(stream), on_host::launch((blocks), (threads), [=] { kernel(__VA_ARGS__); }))

inline void __syncthreads() { on_host::meet(0); }

// Lanes outside of the warp's 32 give the caller's own value back.
template <class T>
T __shfl_sync(uint32_t mask, T value, int lane) {
  return on_host::exchange(mask, value, lane % 32);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return on_host::exchange(mask, value, (on_host::lane() ^ bits) % 32);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned offset) {
  const int from = on_host::lane() + static_cast<int>(offset);
  return on_host::exchange(mask, value, from < 32 ? from : on_host::lane());
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
