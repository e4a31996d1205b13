// Reductions down the columns of each task's [rows, channels] slice, followed by a pass over them.
//
// A block owns a task, a tile of channels (64 bytes of a row) and a split of the rows. With one
// split a single launch reduces and applies; with more, a first launch leaves partial sums that
// every block of the second one combines, always in the same order.
#pragma once

#include "device.cuh"

namespace fastmaml::cuda {

struct Grid {
  int64_t tasks = 0, rows = 0, channels = 0, tiles = 0, splits = 1;
};

// Threads of a block: LANES across the channels of a tile, V channels each; the others down rows.
template <class S, int V> constexpr int kLanes = V == 1 ? 16 : 64 / (V * int(sizeof(S)));
template <class S, int V> constexpr int kTile = kLanes<S, V> * V;

struct Place {
  int64_t task, split, channel;  // channel: this thread's first; it may lie beyond the last
  int64_t begin, end, step;      // this thread's rows
  int lane;
  bool first;                    // the one thread a task and channel that writes per-channel results
};

template <class S, int V> FM_DEVICE Place place(const Grid& grid, int64_t job) {
  constexpr int LANES = kLanes<S, V>;
  Place p;
  const int64_t tile = job % grid.tiles, rest = job / grid.tiles;
  p.task = rest / grid.splits;
  p.split = rest - p.task * grid.splits;
  p.lane = threadIdx.x % LANES;
  p.channel = tile * kTile<S, V> + p.lane * V;
  const int64_t share = (grid.rows + grid.splits - 1) / grid.splits;
  p.begin = p.split * share + threadIdx.x / LANES;
  p.end = (p.split + 1) * share < grid.rows ? (p.split + 1) * share : grid.rows;
  p.step = kThreads / LANES;
  if (p.channel >= grid.channels) p.end = p.begin;
  p.first = p.split == 0 && threadIdx.x < LANES && p.channel < grid.channels;
  return p;
}

struct Sum {
  template <int K, class A> FM_DEVICE static void merge(A (&x)[K], const A (&y)[K]) {
#pragma unroll
    for (int k = 0; k < K; ++k) x[k] += y[k];
  }
};

// Count, mean and sum of squared deviations (Chan, Golub and LeVeque 1979): no cancellation.
struct Moments {
  template <class A> FM_DEVICE static void merge(A (&x)[3], const A (&y)[3]) {
    const A n = x[0] + y[0];
    if (n == A(0)) return;
    const A share = y[0] / n, d = y[1] - x[1];
    x[1] += d * share;
    x[2] += y[2] + d * d * x[0] * share;
    x[0] = n;
  }
};

// Merges all threads' values into total[channel of the tile]; all threads may read it afterwards.
template <class Merge, int LANES, int K, int V, class A>
FM_DEVICE void merge_rows(A (&x)[V][K], A (&total)[LANES * V][K]) {
  __shared__ A warps[kWarps][LANES * V][K];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int offset = LANES; offset < 32; offset *= 2) {
      A other[K];
#pragma unroll
      for (int k = 0; k < K; ++k) other[k] = __shfl_down_sync(kWholeWarp, x[v][k], offset);
      Merge::merge(x[v], other);
    }
    if (lane < LANES) {
#pragma unroll
      for (int k = 0; k < K; ++k) warps[warp][lane * V + v][k] = x[v][k];
    }
  }
  __syncthreads();
  if (threadIdx.x < LANES * V) {
    A sum[K] = {};
    for (int w = 0; w < kWarps; ++w) Merge::merge(sum, warps[w][threadIdx.x]);
#pragma unroll
    for (int k = 0; k < K; ++k) total[threadIdx.x][k] = sum[k];
  }
  __syncthreads();
}

// Op: `K` and `Merge`; gather(place, x): this thread's share of the reduction; apply(place, total):
// everything else, total holding the reduced values of its V channels.
template <class S, int V, class Op>
FM_KERNEL columns_partial_kernel(const __grid_constant__ Op op, Grid grid, Acc<S>* partial) {
  using A = Acc<S>;
  constexpr int K = Op::K, TILE = kTile<S, V>;
  __shared__ A total[TILE][K];
  for (int64_t job = blockIdx.x; job < grid.tasks * grid.splits * grid.tiles; job += gridDim.x) {
    const Place at = place<S, V>(grid, job);
    A x[V][K] = {};
    op.template gather<S, V>(at, x);
    merge_rows<typename Op::Merge, kLanes<S, V>>(x, total);
    for (int i = threadIdx.x; i < TILE * K; i += kThreads) partial[job * TILE * K + i] = total[i / K][i % K];
  }
}

template <class S, int V, class Op>
FM_KERNEL columns_apply_kernel(const __grid_constant__ Op op, Grid grid, const Acc<S>* partial) {
  using A = Acc<S>;
  constexpr int K = Op::K, TILE = kTile<S, V>;
  __shared__ A total[TILE][K];
  for (int64_t job = blockIdx.x; job < grid.tasks * grid.splits * grid.tiles; job += gridDim.x) {
    const Place at = place<S, V>(grid, job);
    if (grid.splits == 1) {
      A x[V][K] = {};
      op.template gather<S, V>(at, x);
      merge_rows<typename Op::Merge, kLanes<S, V>>(x, total);
    } else {
      if (threadIdx.x < TILE) {
        A sum[K] = {};
        for (int64_t split = 0; split < grid.splits; ++split) {
          const int64_t source = (at.task * grid.splits + split) * grid.tiles + job % grid.tiles;
          A part[K];
#pragma unroll
          for (int k = 0; k < K; ++k) part[k] = partial[(source * TILE + threadIdx.x) * K + k];
          Op::Merge::merge(sum, part);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) total[threadIdx.x][k] = sum[k];
      }
      __syncthreads();
    }
    A mine[V][K];
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int k = 0; k < K; ++k) mine[v][k] = total[at.lane * V + v][k];
    }
    op.template apply<S, V>(at, mine);
    __syncthreads();  // before the next job overwrites the total
  }
}

// Host side. Splits come from the sizes alone, so that results do not depend on the device: enough
// blocks to fill a large GPU, but at least 512 rows each.
inline Grid columns_grid(int64_t tasks, int64_t rows, int64_t channels, int64_t tile) {
  constexpr int64_t kBlocks = 528, kRows = 512, kMostSplits = 32;
  Grid grid{tasks, rows, channels, ceil_div(channels, tile), 1};
  const int64_t blocks = tasks * grid.tiles;
  if (blocks == 0) return grid;
  int64_t splits = ceil_div(kBlocks, blocks);
  if (splits > rows / kRows) splits = rows / kRows;
  if (splits > kMostSplits) splits = kMostSplits;
  if (splits > 1) grid.splits = splits;
  return grid;
}

// Elements of the accumulating type; an upper bound over the tiles that V may lead to.
inline int64_t columns_workspace(int64_t tasks, int64_t rows, int64_t channels, int64_t k) {
  int64_t most = 0;
  for (const int64_t tile : {8, 16, 32}) {
    const Grid grid = columns_grid(tasks, rows, channels, tile);
    const int64_t size = grid.splits == 1 ? 0 : tasks * grid.splits * grid.tiles * tile * k;
    most = size > most ? size : most;
  }
  return most;
}

template <class S, int V, class Op>
void columns(const Op& op, int64_t tasks, int64_t rows, int64_t channels, void* workspace, void* stream) {
  const Grid size = columns_grid(tasks, rows, channels, kTile<S, V>);
  const int64_t jobs = size.tasks * size.splits * size.tiles;
  if (jobs == 0) return;
  Acc<S>* partial = static_cast<Acc<S>*>(workspace);
  if (size.splits > 1) FM_LAUNCH((columns_partial_kernel<S, V, Op>), grid(jobs), kThreads, stream, op, size, partial);
  FM_LAUNCH((columns_apply_kernel<S, V, Op>), grid(jobs), kThreads, stream, op, size, partial);
}

}  // namespace fastmaml::cuda
