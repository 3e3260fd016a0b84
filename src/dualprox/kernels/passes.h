// The arithmetic of a step: passes over rows of adjacent entries.
//
// Loops run along the columns and every column has sums of its own, so compilers vectorize them
// without reordering any sum.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))
// No iteration of the next loop writes what another one reads.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace dualprox {

using i64 = int64_t;

enum Method { kRMDA = 0, kRAMDA = 1, kProxSGD = 2, kProxAdamW = 3 };

constexpr bool is_dual(Method m) { return m == kRMDA || m == kRAMDA; }
constexpr bool has_metric(Method m) { return m == kRAMDA || m == kProxAdamW; }

struct bf16 {
  uint16_t bits;
};

INLINE float load(float x) { return x; }
INLINE float load(bf16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

INLINE void save(float& to, float x) { to = x; }
INLINE void save(bf16& to, float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  const uint32_t nearest = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;  // ties to even
  to.bits = uint16_t(x == x ? nearest : 0x7fc0u);
}

// x^(1/3) for x >= 0: a guess z of x^(-1/3) read off the exponent, with |1 - x z^3| < 0.103, times
// a polynomial near (1 - e)^(-1/3), then x z^2. Zero stays zero; infinity gives NaN.
INLINE float cube_root(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const float scaled = subnormal ? x * 16777216.0f : x;  // 2^24
  int32_t bits;
  std::memcpy(&bits, &scaled, 4);
  bits = 0x54a1f400 - int32_t(float(bits) * 0.333333343f);
  float z;
  std::memcpy(&z, &bits, 4);
  const float e = 1.0f - scaled * z * z * z;
  const float rest =
      0.33333334f + e * (0.22221826f + e * (0.17283259f + e * (0.14551933f + e * 0.12650158f)));
  z += z * e * rest;
  const float root = scaled * z * z;
  return subnormal ? root * 0.00390625f : root;  // 2^-8
}

// Written so that NaN passes through the comparisons.
INLINE float soft_threshold(float a, float threshold) {
  const float below = threshold < a ? threshold : a;
  return a - (below < -threshold ? -threshold : below);
}

// As torch does it: exact at both ends.
INLINE float lerp(float from, float to, float weight) {
  const bool near = weight < 0.5f;
  return (near ? from : to) + (near ? weight : weight - 1.0f) * (to - from);
}

// What all entries of one parameter share in one step.
struct Step {
  float sign = 1;          // -1 to ascend
  float scale = 0;         // s_t, or the weight of the new gradient in m
  float square_keep = 1;   // beta2
  float square_scale = 0;  // s_t, or 1 - beta2
  float linear_scale = 1;  // of V or m in a
  float metric_scale = 1;  // of sqrt(v)
  float eps = 0;
  float center_scale = 1;  // 1 - lr * weight_decay
  float entry_threshold = 0;
  float group_threshold = 0;
  float weight = 1;  // of the structured point in the iterate
  bool begins_stage = false;
};

template <class T>
struct Pointers {
  T* param;
  const T* grad;
  float *first, *second, *anchor;  // V U W0 | V - W0 | m | m v
};

// Rows of adjacent columns that hold whole groups, or one long run folded into rows.
struct Tile {
  i64 base;    // place of the first entry
  i64 rows;    // full rows, `stride` apart
  i64 stride;
  i64 width;   // columns
  i64 tail;    // entries of one more row
  i64 inner;   // adjacent columns of one group
  i64 groups() const { return width / inner; }
  i64 all_rows() const { return rows + (tail > 0); }
  i64 columns(i64 row) const { return row < rows ? width : tail; }
  i64 stored(Method m) const { return has_metric(m) ? 2 * width : width; }  // floats of a row
};

constexpr int kSums = 4;  // of every column

// What a pass does. The sums of kGather are those of a^2, d a^2 and d^2 a^2; of kSweep, with
// p = a / (d r + t) and q = d / (d r + t), those of p^2, q p^2, q^2 p^2 and q^3 p^2.
enum Pass {
  kGather,  // update the buffers, sum
  kSweep,   // sum at r
  kSpread,  // move the parameter to the solution of norm r
  kEntries,  // everything at once, without groups
  kFree      // the same, without any penalty
};

// One row of n entries from `at` on. Where the metric is a number it is divided out, and only a^2
// is summed. `stored` has room for a and d of a row; kGather fills it. Without it a and d are
// computed anew.
template <Method M, class T, Pass kPass, bool kStores>
INLINE void pass_row(const Pointers<T> x, const Step s, i64 at, i64 n, i64 width,
                     const float* __restrict r, const float* __restrict t,
                     float* __restrict stored, float* __restrict sums) {
  constexpr bool kWhole = kPass == kEntries || kPass == kFree;
  constexpr bool kUpdates = kPass == kGather || kWhole;
  constexpr bool kMoves = kPass == kSpread || kWhole;
  constexpr bool kReads = kStores && !kUpdates;
  T* param = x.param + at;
  const T* grad = x.grad + at;
  float* first = x.first + at;
  float* second = has_metric(M) ? x.second + at : nullptr;
  const float* anchor = is_dual(M) ? x.anchor + at : nullptr;
  INDEPENDENT
  for (i64 j = 0; j < n; ++j) {
    float a, d = 1.0f;
    if (kReads) {
      a = stored[j];
      if (has_metric(M)) d = stored[width + j];
    } else {
      float linear = first[j], square = has_metric(M) ? second[j] : 0.0f;
      if (kUpdates) {
        const float g = s.sign * load(grad[j]);
        linear = is_dual(M) ? linear + s.scale * g : lerp(linear, g, s.scale);
        first[j] = linear;
        if (M == kRAMDA) square = square + s.square_scale * (g * g);
        if (M == kProxAdamW) square = s.square_keep * square + s.square_scale * (g * g);
        if (has_metric(M)) second[j] = square;
      }
      const float center = is_dual(M) ? anchor[j] : load(param[j]) * s.center_scale;
      if (M == kRAMDA) d = cube_root(square) + s.eps;
      if (M == kProxAdamW) d = std::sqrt(square) * s.metric_scale + s.eps;
      if (kPass == kFree) {
        a = center - s.linear_scale * linear / d;  // the point: a zero gradient moves nothing
      } else {
        a = soft_threshold(d * center - s.linear_scale * linear, s.entry_threshold);
      }
      if (kStores) {
        stored[j] = a;
        if (has_metric(M)) stored[width + j] = d;
      }
    }
    if (kPass == kGather) {
      const float square = a * a, slope = d * square;
      sums[j] += square;
      if (has_metric(M)) {
        sums[width + j] += slope;
        sums[2 * width + j] += d * slope;
      }
    } else if (kPass == kSweep) {
      const float inverse = 1.0f / (d * r[j] + t[j]), p = a * inverse, q = d * inverse;
      const float total = p * p, rise = q * total;
      sums[j] += total;
      sums[width + j] += rise;
      sums[2 * width + j] += q * rise;
      sums[3 * width + j] += q * (q * rise);
    }
    if (kMoves) {
      float point = a;
      if (kPass == kEntries && has_metric(M)) point = a / d;
      if (kPass == kSpread) point = has_metric(M) ? a * r[j] / (d * r[j] + t[j]) : a * r[j];
      save(param[j], is_dual(M) ? lerp(load(param[j]), point, s.weight) : point);
    }
  }
}

template <Method M, class T>
void begin_stage(const Pointers<T>& x, i64 at, i64 n) {
  for (i64 j = at; j < at + n; ++j) x.anchor[j] = load(x.param[j]);
  std::memset(x.first + at, 0, n * sizeof(float));
  if (has_metric(M)) std::memset(x.second + at, 0, n * sizeof(float));
}

// Rows [begin, end) of a tile. `stored` has room for a and d of the whole tile, or is null; `sums`
// for kSums rows of columns.
template <Method M, class T, Pass kPass>
void pass_rows(const Pointers<T>& x, const Step& s, const Tile& tile, i64 begin, i64 end,
               const float* r, const float* t, float* stored, float* sums) {
  const i64 width = tile.width;
  for (i64 row = begin; row < end; ++row) {
    const i64 at = tile.base + row * tile.stride, n = tile.columns(row);
    if (is_dual(M) && kPass == kGather && s.begins_stage) begin_stage<M>(x, at, n);
    if (stored) {
      pass_row<M, T, kPass, true>(x, s, at, n, width, r, t, stored + row * tile.stored(M), sums);
    } else {
      pass_row<M, T, kPass, false>(x, s, at, n, width, r, t, nullptr, sums);
    }
  }
}

template <Method M, class T>
void pass_entries(const Pointers<T>& x, const Step& s, i64 begin, i64 end) {
  if (is_dual(M) && s.begins_stage) begin_stage<M>(x, begin, end - begin);
  const auto pass = s.entry_threshold == 0 ? pass_row<M, T, kFree, false>
                                           : pass_row<M, T, kEntries, false>;
  pass(x, s, begin, end - begin, 0, nullptr, nullptr, nullptr, nullptr);
}

}  // namespace dualprox
