// How many float32 multiply-adds a second the cores do when nothing waits for memory.

#include <cstdint>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
constexpr int kChains = 12;  // independent ones: more than latency times throughput

void chains(int64_t rounds, float* result) {
  Vector sums[kChains], factor, term;
  for (int lane = 0; lane < kLanes; ++lane) factor[lane] = 0.999f, term[lane] = 1e-3f * lane;
  for (auto& sum : sums) sum = term;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * factor + term;
  }
  for (auto& sum : sums)
    for (int lane = 0; lane < kLanes; ++lane) *result += sum[lane];
}

}  // namespace

// Runs so many rounds on every thread; returns the additions and multiplications done.
extern "C" double multiply_adds(int threads, int64_t rounds) {
  std::vector<float> results(threads * 64);
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(chains, rounds, &results[t * 64]);
  chains(rounds, &results[0]);
  for (auto& other : others) other.join();
  return 2.0 * kLanes * kChains * static_cast<double>(rounds) * threads;
}
