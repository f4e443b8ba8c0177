// Edge attention over sorted edges: forward, and backward over the in-edges and over the out-edges of each node.
//
// Compiled at first use, once for each set of these macros (cuda.py chooses them):
//   VALUE_BF16  values are bfloat16 if 1, float32 if 0; scores, weights and all arithmetic are float32
//   VECTOR      channels that a lane reads at once; divides the number of channels
//   LANES       lanes that share a row of channels; the 32 / LANES groups of a warp take different edges
//
// A row is a (node, head), and one warp owns it: it scores 32 edges at a time, one on each lane, then all lanes gather the values of those
// edges. A warp of a row with few edges is done at once; a row with more than LONG_ROW edges is left to all warps of its block together,
// so that a node with thousands of neighbours holds up nobody. Which case a row is depends on its degree alone and every sum is
// taken in a fixed order, without atomics: results repeat bit for bit.
//
// Channels beyond LANES * VECTOR belong to further blocks along grid.y. A node number that is out of range gives NaN, not a stray read.

typedef long long int64;
typedef unsigned long long uint64;

#define WARP 32
#define WARPS 8  // per block
#define LONG_ROW 256
#define GROUPS (WARP / LANES)
#define TILE (LANES * VECTOR)  // channels of a block
#define IN_FLIGHT (LANES < 4 ? LANES : 4)  // reads that a lane has under way at once; more are no more than the edges of a warp
#define FULL 0xffffffffu
#define DEVICE static __device__ __forceinline__
// At least three blocks on a multiprocessor: left to itself the compiler spills registers to fit more.
#define KERNEL extern "C" __global__ void __launch_bounds__(WARP * WARPS, 3)

#if VALUE_BF16
typedef unsigned short value;
DEVICE float widen(value v) { return __uint_as_float((unsigned)v << 16); }
DEVICE value narrow(float v) {
  const unsigned bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // NaN
  return (value)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}
#else
typedef float value;
DEVICE float widen(value v) { return v; }
DEVICE value narrow(float v) { return v; }
#endif

struct __align__(VECTOR * sizeof(value)) Pack {
  value v[VECTOR];
};

struct Channels {  // a lane's part of a row
  float v[VECTOR];
};

DEVICE float not_a_number() { return __int_as_float(0x7fffffff); }
DEVICE float minus_infinity() { return __int_as_float((int)0xff800000); }
DEVICE int at_most(int a, int b) { return a < b ? a : b; }
DEVICE int lane_id() { return threadIdx.x % WARP; }
DEVICE int warp_id() { return threadIdx.x / WARP; }

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int o = WARP / 2; o > 0; o /= 2) v += __shfl_xor_sync(FULL, v, o);
  return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
  for (int o = WARP / 2; o > 0; o /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, o));
  return v;
}

DEVICE float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }
DEVICE float gelu(float x) { return x * normal_cdf(x); }
DEVICE float gelu_slope(float x) { return normal_cdf(x) + x * 0.39894228040143268f * expf(-0.5f * x * x); }

DEVICE void clear(Channels& c) {
#pragma unroll
  for (int u = 0; u < VECTOR; ++u) c.v[u] = 0.0f;
}

DEVICE Pack load(const value* row, int channel) { return *reinterpret_cast<const Pack*>(row + channel); }

DEVICE void store(value* row, int channel, const Channels& c) {
  Pack pack;
#pragma unroll
  for (int u = 0; u < VECTOR; ++u) pack.v[u] = narrow(c.v[u]);
  *reinterpret_cast<Pack*>(row + channel) = pack;
}

DEVICE float dot_product(const Pack& left, const Pack& right) {
  float sum = 0.0f;
#pragma unroll
  for (int u = 0; u < VECTOR; ++u) sum += widen(left.v[u]) * widen(right.v[u]);
  return sum;
}

// The first channel that this lane owns.
DEVICE int first_channel() { return blockIdx.y * TILE + lane_id() % LANES * VECTOR; }

// sum += weight * values[node], over the `count` edges, one at least, whose node and weight the lanes hold. The groups of a warp take turns.
// Reads are not guarded, for a guard would make each wait for the one before: beyond the last edge, or the last channel, they read again
// what is there, and nothing comes of it.
DEVICE void add_rows(Channels& sum, const value* values, int64 node, float weight, int count, int head, int heads, int channels) {
  if (channels == 0) return;
  const int channel = first_channel() < channels ? first_channel() : 0, group = lane_id() / LANES;
#pragma unroll 1
  for (int first = group; first - group < count; first += GROUPS * IN_FLIGHT) {
    Pack pack[IN_FLIGHT];
    float by[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; ++i) {
      const int edge = at_most(first + i * GROUPS, count - 1);
      const int64 from = __shfl_sync(FULL, node, edge);
      by[i] = __shfl_sync(FULL, weight, edge);
      pack[i] = load(values + (from * heads + head) * channels, channel);
    }
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; ++i) {
      if (first + i * GROUPS < count) {
#pragma unroll
        for (int u = 0; u < VECTOR; ++u) sum.v[u] += by[i] * widen(pack[i].v[u]);
      }
    }
  }
}

DEVICE void add_groups(Channels& sum) {
#pragma unroll
  for (int o = LANES; o < WARP; o *= 2) {
#pragma unroll
    for (int u = 0; u < VECTOR; ++u) sum.v[u] += __shfl_xor_sync(FULL, sum.v[u], o);
  }
}

struct Row {
  int64 node, begin, end;
  int head;
};

DEVICE Row row_of(int64 index, int heads, const int64* start) {
  Row row;
  row.node = heads == 1 ? index : index / heads;
  row.head = (int)(index - row.node * heads);
  row.begin = start[row.node];
  row.end = start[row.node + 1];
  return row;
}

DEVICE int64 edges_of(const Row& row) { return row.end - row.begin; }
DEVICE int edges_from(int64 k, int64 end) { return (int)(end - k < WARP ? end - k : WARP); }

// Calls `work(row, part, parts)` on the rows of this block: `parts` warps share a row, of which this one is number `part`.
template <typename Work>
DEVICE void for_each_row(int64 rows, int heads, const int64* start, Work work) {
  const int64 first = (int64)blockIdx.x * WARPS, looked_at = first + lane_id();
  const bool is_long = lane_id() < WARPS && looked_at < rows && edges_of(row_of(looked_at, heads, start)) > LONG_ROW;
  unsigned long_rows = __ballot_sync(FULL, is_long);  // the same in every warp
  bool alone = !(long_rows >> warp_id() & 1) && first + warp_id() < rows;
  while (alone || long_rows) {  // one place that calls `work`: it is inlined
    const int turn = alone ? warp_id() : __ffs(long_rows) - 1;
    work(row_of(first + turn, heads, start), alone ? 0 : warp_id(), alone ? 1 : WARPS);
    if (!alone) long_rows &= long_rows - 1;
    alone = false;
  }
}

// The sum over the warps that share a row; `scratch` holds WARPS numbers.
DEVICE float sum_over_parts(float v, int parts, float* scratch) {
  if (parts == 1) return v;
  if (lane_id() == 0) scratch[warp_id()] = v;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < WARPS; ++w) sum += scratch[w];
  __syncthreads();  // before anybody writes scratch again
  return sum;
}

DEVICE float max_over_parts(float v, int parts, float* scratch) {
  if (parts == 1) return v;
  if (lane_id() == 0) scratch[warp_id()] = v;
  __syncthreads();
  float top = scratch[0];
  for (int w = 1; w < WARPS; ++w) top = fmaxf(top, scratch[w]);
  __syncthreads();
  return top;
}

// As sum_over_parts, for channels; `scratch` holds WARPS * TILE numbers. Only the first warp gets the sum.
DEVICE void add_parts(Channels& sum, int parts, float* scratch) {
  if (parts == 1) return;
  const int slot = lane_id() % LANES * VECTOR;
  if (lane_id() < LANES) {
#pragma unroll
    for (int u = 0; u < VECTOR; ++u) scratch[warp_id() * TILE + slot + u] = sum.v[u];
  }
  __syncthreads();
  if (warp_id() == 0) {
    clear(sum);
    for (int w = 0; w < WARPS; ++w) {
#pragma unroll
      for (int u = 0; u < VECTOR; ++u) sum.v[u] += scratch[w * TILE + slot + u];
    }
  }
  __syncthreads();
}

// The GELU score of edge k, NaN if it names a node that is not there (`node` is then 0).
DEVICE float score_of(const float* score_src, float score_dst, const int64* source, int64 k, int64 nodes, int head, int heads, int64& node) {
  node = source[k];
  if ((uint64)node >= (uint64)nodes) {
    node = 0;
    return not_a_number();
  }
  return gelu(score_dst + score_src[node * heads + head]);
}

// y (N_dst, H, C) and weights (E, H), the latter in the order that the edges were given in.
// Launch: grid (ceil(N_dst * H / WARPS), ceil(C / TILE)), block WARP * WARPS.
KERNEL edge_attention_fwd_kernel(const value* __restrict__ x, const float* __restrict__ score_dst, const float* __restrict__ score_src,
                                 const int64* __restrict__ source, const int64* __restrict__ order, const int64* __restrict__ start,
                                 value* __restrict__ y, float* __restrict__ weights, int64 num_sources, int64 num_targets, int64 num_edges,
                                 int heads, int channels) {
  __shared__ float scratch[WARPS * TILE];
  __shared__ float scratch_parts[WARPS];
  for_each_row(num_targets * heads, heads, start, [&](const Row& row, int part, int parts) {
    const float own = score_dst[row.node * heads + row.head];
    const int64 begin = row.begin + (int64)part * WARP, step = (int64)parts * WARP;
    Channels sum;
    clear(sum);
    float top = minus_infinity(), total = 0.0f;  // of the edges so far: the maximum, and this lane's part of the sum of exponentials
    for (int64 k = begin; k < row.end; k += step) {
      const int count = edges_from(k, row.end);
      int64 node = 0;
      float score = minus_infinity();
      if (lane_id() < count) score = score_of(score_src, own, source, k + lane_id(), num_sources, row.head, heads, node);
      const float higher = fmaxf(top, warp_max(score));
      const float shrink = expf(top - higher), weight = lane_id() < count ? expf(score - higher) : 0.0f;
      total = total * shrink + weight;
#pragma unroll
      for (int u = 0; u < VECTOR; ++u) sum.v[u] *= shrink;
      add_rows(sum, x, node, weight, count, row.head, heads, channels);
      top = higher;
    }
    const float highest = max_over_parts(top, parts, scratch_parts);
    if (parts > 1) {  // every part has edges, so that none has a maximum of -inf
      const float shrink = expf(top - highest);
      total *= shrink;
#pragma unroll
      for (int u = 0; u < VECTOR; ++u) sum.v[u] *= shrink;
    }
    const float sum_of_all = sum_over_parts(warp_sum(total), parts, scratch_parts);
    const float inverse = row.end > row.begin ? 1.0f / sum_of_all : 0.0f;
    add_groups(sum);
    add_parts(sum, parts, scratch);
    if (part == 0 && lane_id() < LANES && first_channel() < channels) {
#pragma unroll
      for (int u = 0; u < VECTOR; ++u) sum.v[u] *= inverse;
      store(y + (row.node * heads + row.head) * channels, first_channel(), sum);
    }
    if (blockIdx.y != 0) return;
    for (int64 k = begin + lane_id(); k < row.end; k += step) {
      int64 node;
      const float score = score_of(score_src, own, source, k, num_sources, row.head, heads, node);
      weights[order[k] * heads + row.head] = expf(score - highest) * inverse;
    }
    // Edges to nodes that are not there come before the first row's or after the last one's.
    const int64 before = row.node == 0 ? row.begin : 0, after = row.node == num_targets - 1 ? num_edges : row.end;
    for (int64 k = (int64)part * WARP + lane_id(); k < before; k += step) weights[order[k] * heads + row.head] = not_a_number();
    for (int64 k = row.end + (int64)part * WARP + lane_id(); k < after; k += step) weights[order[k] * heads + row.head] = not_a_number();
  });
}

// By destination: grad_logit (E, H), the gradient of a_i + b_j of every sorted edge, and its sums grad_dst (N_dst, H).
// grad_weights may be null. Launch: grid (ceil(N_dst * H / WARPS), 1), block WARP * WARPS.
KERNEL edge_attention_bwd_target_kernel(const value* __restrict__ grad_y, const float* __restrict__ grad_weights,
                                        const value* __restrict__ x, const float* __restrict__ score_dst,
                                        const float* __restrict__ score_src, const float* __restrict__ weights,
                                        const int64* __restrict__ source, const int64* __restrict__ order,
                                        const int64* __restrict__ start, float* __restrict__ grad_logit, float* __restrict__ grad_dst,
                                        int64 num_sources, int64 num_targets, int64 num_edges, int heads, int channels) {
  __shared__ float scratch_parts[WARPS];
  for_each_row(num_targets * heads, heads, start, [&](const Row& row, int part, int parts) {
    const float own = score_dst[row.node * heads + row.head];
    const value* grad_row = grad_y + (row.node * heads + row.head) * channels;
    const int64 begin = row.begin + (int64)part * WARP, step = (int64)parts * WARP;
    const int group = lane_id() / LANES, channel = lane_id() % LANES * VECTOR;
    float mean = 0.0f;  // this lane's part of the sum of weight * gradient of the weight
    for (int64 k = begin; k < row.end; k += step) {
      const int count = edges_from(k, row.end);
      int64 node = 0;
      if (lane_id() < count) node = source[k + lane_id()];
      const bool there = (uint64)node < (uint64)num_sources;
      if (!there) node = 0;
      float grad = 0.0f;  // of the weight of this lane's edge
#pragma unroll 1
      for (int first = 0; first < (channels ? count : 0); first += GROUPS * IN_FLIGHT) {
        float dots[IN_FLIGHT] = {};
#pragma unroll 1
        for (int c = channel; c - channel < channels; c += TILE) {  // the same number of turns on all lanes
          const bool inside = c < channels;
          const Pack own_grad = load(grad_row, inside ? c : 0);
          Pack pack[IN_FLIGHT];
#pragma unroll
          for (int i = 0; i < IN_FLIGHT; ++i) {  // as in add_rows
            const int64 from = __shfl_sync(FULL, node, at_most(first + i * GROUPS + group, count - 1));
            pack[i] = load(x + (from * heads + row.head) * channels, inside ? c : 0);
          }
#pragma unroll
          for (int i = 0; i < IN_FLIGHT; ++i) {
            if (inside) dots[i] += dot_product(own_grad, pack[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
#pragma unroll
          for (int o = LANES / 2; o > 0; o /= 2) dots[i] += __shfl_xor_sync(FULL, dots[i], o);
          const float found = __shfl_sync(FULL, dots[i], lane_id() % GROUPS * LANES);  // from the group whose edge is this lane's
          if (lane_id() / GROUPS * GROUPS == first + i * GROUPS) grad = found;
        }
      }
      if (lane_id() < count) {
        const int64 given = order[k + lane_id()] * heads + row.head;
        if (grad_weights) grad += grad_weights[given];
        if (!there) grad = not_a_number();
        mean += weights[given] * grad;
        grad_logit[(k + lane_id()) * heads + row.head] = grad;  // for the second round; nobody else reads it
      }
    }
    mean = sum_over_parts(warp_sum(mean), parts, scratch_parts);
    float sum = 0.0f;
    for (int64 k = begin + lane_id(); k < row.end; k += step) {
      const int64 at = k * heads + row.head;
      int64 node = source[k];
      if ((uint64)node >= (uint64)num_sources) node = 0;  // the gradient is NaN already
      const float grad = weights[order[k] * heads + row.head] * (grad_logit[at] - mean) * gelu_slope(own + score_src[node * heads + row.head]);
      grad_logit[at] = grad;
      sum += grad;
    }
    sum = sum_over_parts(warp_sum(sum), parts, scratch_parts);
    if (part == 0 && lane_id() == 0) grad_dst[row.node * heads + row.head] = sum;
  });
}

// By source: grad_x (N_src, H, C) and grad_src (N_src, H). `by_source` and `source_start` are the out-edges, by their place among the
// sorted edges. Launch: grid (ceil(N_src * H / WARPS), ceil(C / TILE)), block WARP * WARPS.
KERNEL edge_attention_bwd_source_kernel(const value* __restrict__ grad_y, const float* __restrict__ weights,
                                        const float* __restrict__ grad_logit, const int64* __restrict__ target,
                                        const int64* __restrict__ order, const int64* __restrict__ by_source,
                                        const int64* __restrict__ source_start, value* __restrict__ grad_x, float* __restrict__ grad_src,
                                        int64 num_sources, int64 num_targets, int64 num_edges, int heads, int channels) {
  __shared__ float scratch[WARPS * TILE];
  __shared__ float scratch_parts[WARPS];
  for_each_row(num_sources * heads, heads, source_start, [&](const Row& row, int part, int parts) {
    const int64 begin = row.begin + (int64)part * WARP, step = (int64)parts * WARP;
    Channels sum;
    clear(sum);
    float grad = 0.0f;
    for (int64 k = begin; k < row.end; k += step) {
      const int count = edges_from(k, row.end);
      int64 node = 0;
      float weight = 0.0f;
      if (lane_id() < count) {
        const int64 edge = by_source[k + lane_id()];
        node = target[edge];
        weight = weights[order[edge] * heads + row.head];
        grad += grad_logit[edge * heads + row.head];
        if ((uint64)node >= (uint64)num_targets) {  // nothing has written the gradient of its logit
          node = 0;
          weight = grad = not_a_number();
        }
      }
      add_rows(sum, grad_y, node, weight, count, row.head, heads, channels);
    }
    add_groups(sum);
    add_parts(sum, parts, scratch);
    grad = sum_over_parts(warp_sum(grad), parts, scratch_parts);
    if (part != 0) return;
    if (lane_id() < LANES && first_channel() < channels) store(grad_x + (row.node * heads + row.head) * channels, first_channel(), sum);
    if (lane_id() == 0 && blockIdx.y == 0) grad_src[row.node * heads + row.head] = grad;
  });
}
