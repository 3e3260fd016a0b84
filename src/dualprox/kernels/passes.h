// The arithmetic of a step: passes over rows of adjacent entries.
//
// Loops run along the columns and every column has sums of its own, so compilers vectorize them
// without reordering any sum.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>

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
// Whether thresholds are so small beside the slopes that 1/d tells more of the norm than d.
constexpr bool has_ends(Method m) { return m == kProxAdamW; }

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

INLINE void save(bf16& to, float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  const uint32_t nearest = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;  // ties to even
  to.bits = uint16_t(x == x ? nearest : 0x7fc0u);
}

constexpr float kSmallest = std::numeric_limits<float>::min();  // normal number
constexpr float kLargest = std::numeric_limits<float>::max();

// Zero for a subnormal number, which processors are slow with; NaN stays.
INLINE float flush(float x) { return std::fabs(x) < kSmallest ? 0.0f : x; }

// A sum of squares as it is kept: finite, unless it is NaN.
INLINE float flush_square(float x) { return x > kLargest ? kLargest : flush(x); }

// Entry j of the iterate, and its new value: a bfloat16 parameter and the rest that it lost.
INLINE float iterate(const float* param, const bf16*, i64 j) { return param[j]; }
INLINE float iterate(const bf16* param, const bf16* rest, i64 j) {
  return load(param[j]) + load(rest[j]);
}
INLINE void keep(float* param, bf16*, i64 j, float x) { param[j] = flush(x); }
INLINE void keep(bf16* param, bf16* rest, i64 j, float x) {
  x = flush(x);
  save(param[j], x);
  save(rest[j], flush(x - load(param[j])));
}

// x^(1/3) for x >= 0: a guess z of x^(-1/3) read off the exponent, with |1 - x z^3| < 0.103, times
// a polynomial near (1 - e)^(-1/3), then x z^2. Zero stays zero.
INLINE float cube_root(float x) {
  const bool subnormal = x < kSmallest;
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
  bool counts = false;  // a threshold is the price of a live group or entry, whatever its norm
  float weight = 1;  // of the structured point in the iterate
  bool begins_stage = false;
};

template <class T>
struct Pointers {
  T* param;
  const T* grad;
  float *first, *second, *anchor;  // V U W0 | V - W0 | m | m v
  bf16* rest;                      // of a bfloat16 parameter
};

constexpr i64 kLanes = 16;       // columns are filled up to a multiple of this
constexpr i64 kStrip = 64;       // columns of a strip
constexpr i64 kClose = 16;       // rows of a strip that stay in the nearest cache
constexpr i64 kAhead = 4;        // rows that are fetched ahead
constexpr i64 kPart = 8 * 1024;  // least entries of a part of a tile, if it has so many

// Some whole groups of a tile, in whole strips.
struct Part {
  i64 column, columns, group, groups;
};

// Rows of adjacent columns that hold whole groups, or one long run folded into rows.
//
// What is kept of a tile lies in strips of kStrip columns, the last one narrower: of each strip
// every row's a and, with a metric, its d. So a part is swept without gaps, and by itself, so that
// it stays in cache until its norms are found.
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
  i64 lanes() const { return (width + kLanes - 1) / kLanes * kLanes; }

  // Columns of the strip that begins at `column`. What is not swept is kept in whole rows.
  template <Method M>
  i64 strip(i64 column) const {
    return has_metric(M) ? std::min(kStrip, lanes() - column) : lanes();
  }

  // Where a row of the strip that begins at `column` is kept.
  template <Method M>
  i64 place(i64 column, i64 row) const {
    return (column * all_rows() + row * strip<M>(column)) * (has_metric(M) ? 2 : 1);
  }

  Part whole() const { return {0, width, 0, groups()}; }
  i64 part_columns() const {
    const i64 least = std::lcm(inner, kStrip), entries = least * all_rows();
    return least * std::max<i64>(1, (kPart + entries - 1) / entries);
  }
  i64 parts() const { return (width + part_columns() - 1) / part_columns(); }
  Part part(i64 number) const {
    const i64 column = number * part_columns();
    const i64 columns = std::min(part_columns(), width - column);
    return {column, columns, column / inner, columns / inner};
  }
};

constexpr int kSums = 4;  // of every column

// What a pass does. The sum of kPrice is that of a^2 / d. The sums of kGather are those of a^2,
// d a^2 and d^2 a^2, with `has_ends` of a^2, d a^2, a^2 / d and (a / d)^2; of kSweep, with
// p = a / (d r + t) and q = d / (d r + t), those of p^2, q p^2, q^2 p^2 and q^3 p^2.
enum Pass {
  kGather,  // update the buffers, sum
  kPrice,   // the same, where groups are counted
  kSweep,   // sum at r
  kSpread,  // move the parameter to the solution of norm r
  kEntries,  // everything at once, without groups
  kCounted,  // the same, where entries are counted
  kFree      // the same, without any penalty
};

constexpr bool begins(Pass pass) { return pass == kGather || pass == kPrice; }

// Adds p^2, q p^2, q^2 p^2 and q^3 p^2.
INLINE void sum_powers(float a, float d, float r, float t, float& total, float& rise, float& bend,
                       float& twist) {
  const float inverse = 1.0f / (d * r + t), p = a * inverse, q = d * inverse;
  const float square = p * p, slope = q * square, curve = q * slope;
  total += square;
  rise += slope;
  bend += curve;
  twist += q * curve;
}

// One row of n entries from `at` on. Where the metric is a number it is divided out, and only a^2
// is summed, else kSums numbers `lanes` apart. `stored` has room for a and, `strip` further, d;
// kGather fills it. Without it a and d are computed anew.
template <Method M, class T, Pass kPass, bool kStores>
INLINE void pass_row(const Pointers<T> x, const Step s, i64 at, i64 n, i64 lanes,
                     const float* __restrict r, const float* __restrict t,
                     float* __restrict stored, i64 strip, float* __restrict sums) {
  constexpr bool kWhole = kPass == kEntries || kPass == kCounted || kPass == kFree;
  constexpr bool kUpdates = begins(kPass) || kWhole;
  constexpr bool kMoves = kPass == kSpread || kWhole;
  constexpr bool kReads = kStores && !kUpdates;
  T* param = x.param + at;
  bf16* rest = sizeof(T) == sizeof(bf16) ? x.rest + at : nullptr;
  const T* grad = x.grad + at;
  float* first = x.first + at;
  float* second = has_metric(M) ? x.second + at : nullptr;
  const float* anchor = is_dual(M) ? x.anchor + at : nullptr;
  INDEPENDENT
  for (i64 j = 0; j < n; ++j) {
    float a, d = 1.0f;
    if (kReads) {
      a = stored[j];
      if (has_metric(M)) d = stored[strip + j];
    } else {
      float linear = first[j], square = has_metric(M) ? second[j] : 0.0f;
      if (kUpdates) {
        const float g = s.sign * load(grad[j]);
        linear = is_dual(M) ? linear + s.scale * g : lerp(linear, g, s.scale);
        linear = flush(linear);
        first[j] = linear;
        if (M == kRAMDA) square = square + s.square_scale * (g * g);
        if (M == kProxAdamW) square = s.square_keep * square + s.square_scale * (g * g);
        square = flush_square(square);
        if (has_metric(M)) second[j] = square;
      }
      const float center = is_dual(M) ? anchor[j] : iterate(param, rest, j) * s.center_scale;
      if (M == kRAMDA) d = cube_root(square) + s.eps;
      if (M == kProxAdamW) d = std::sqrt(square) * s.metric_scale + s.eps;
      if (kPass == kFree) {
        a = center - s.linear_scale * linear / d;  // the point: a zero gradient moves nothing
      } else {
        a = d * center - s.linear_scale * linear;
        if (kPass != kCounted) a = soft_threshold(a, s.entry_threshold);
      }
      if (kStores) {
        stored[j] = a;
        if (has_metric(M)) stored[strip + j] = d;
      }
    }
    if (kPass == kGather) {
      const float square = a * a, slope = d * square;
      sums[j] += square;
      if (has_metric(M)) sums[lanes + j] += slope;
      if (has_metric(M) && !has_ends(M)) sums[2 * lanes + j] += d * slope;
      if (has_ends(M)) {
        const float center = a / d;
        sums[2 * lanes + j] += a * center;
        sums[3 * lanes + j] += center * center;
      }
    } else if (kPass == kPrice) {
      sums[j] += a * (a / d);
    } else if (kPass == kSweep) {
      sum_powers(a, d, r[j], t[j], sums[j], sums[lanes + j], sums[2 * lanes + j],
                 sums[3 * lanes + j]);
    }
    if (kMoves) {
      float point = a;
      if ((kPass == kEntries || kPass == kCounted) && has_metric(M)) point = a / d;
      if (kPass == kCounted) point = a * point <= 2.0f * s.entry_threshold ? 0.0f : point;
      if (kPass == kSpread) point = has_metric(M) ? a * r[j] / (d * r[j] + t[j]) : a * r[j];
      keep(param, rest, j, is_dual(M) ? lerp(iterate(param, rest, j), point, s.weight) : point);
    }
  }
}

template <Method M, class T>
void begin_stage(const Pointers<T>& x, i64 at, i64 n) {
  for (i64 j = at; j < at + n; ++j) x.anchor[j] = flush(iterate(x.param, x.rest, j));
  std::memset(x.first + at, 0, n * sizeof(float));
  if (has_metric(M)) std::memset(x.second + at, 0, n * sizeof(float));
}

// Sums over rows, `step` apart, of kLanes columns of what is kept.
INLINE void sweep_lanes(i64 rows, i64 step, i64 strip, i64 lanes, const float* __restrict r,
                        const float* __restrict t, const float* __restrict kept,
                        float* __restrict sums) {
  float own_r[kLanes], own_t[kLanes], own[kSums][kLanes] = {};
  std::copy_n(r, kLanes, own_r);
  std::copy_n(t, kLanes, own_t);
  for (i64 row = 0; row < rows; ++row, kept += step) {
    INDEPENDENT
    for (i64 k = 0; k < kLanes; ++k) {
      sum_powers(kept[k], kept[strip + k], own_r[k], own_t[k], own[0][k], own[1][k], own[2][k],
                 own[3][k]);
    }
  }
  for (i64 sum = 0; sum < kSums; ++sum) {
    for (i64 k = 0; k < kLanes; ++k) sums[sum * lanes + k] += own[sum][k];
  }
}

// Fetches what a pass over n entries will read: rows are short and far apart, so the processor
// does not see them coming.
template <Method M, class T, Pass kPass>
INLINE void prefetch(const Pointers<T>& x, i64 at, i64 n) {
  for (i64 j = at; j < at + n; j += kLanes) {
    if (kPass == kSpread || !is_dual(M)) __builtin_prefetch(x.param + j, kPass == kSpread, 2);
    if (!begins(kPass)) continue;
    __builtin_prefetch(x.grad + j, 0, 2);
    __builtin_prefetch(x.first + j, 1, 2);
    if (has_metric(M)) __builtin_prefetch(x.second + j, 1, 2);
    if (is_dual(M)) __builtin_prefetch(x.anchor + j, 0, 2);
  }
}

// Rows [begin, end) of a tile. `stored` has room for a and d of the whole tile, or is null; `sums`
// for kSums rows of lanes.
template <Method M, class T, Pass kPass>
void pass_rows(const Pointers<T> x, const Step s, const Tile tile, i64 begin, i64 end,
               const float* r, const float* t, float* stored, float* sums) {
  const i64 lanes = tile.lanes();
  const auto at = [&](i64 row) { return tile.base + row * tile.stride; };
  if (is_dual(M) && begins(kPass) && s.begins_stage) {
    for (i64 row = begin; row < end; ++row) begin_stage<M>(x, at(row), tile.columns(row));
  }
  if (!stored) {
    for (i64 row = begin; row < end; ++row) {
      pass_row<M, T, kPass, false>(x, s, at(row), tile.columns(row), lanes, r, t, nullptr, 0, sums);
    }
    return;
  }
  for (i64 row = begin; row < end; ++row) {
    const i64 ahead = row + kAhead < tile.rows ? kAhead * tile.stride : 0;
    for (i64 j = 0; j < lanes; j += tile.strip<M>(j)) {
      const i64 strip = tile.strip<M>(j);
      const i64 here = at(row) + j, n = std::min(strip, tile.columns(row) - j);
      float* kept = stored + tile.place<M>(j, row);
      if (has_metric(M) && ahead) prefetch<M, T, kPass>(x, here + ahead, n);
      if (has_metric(M) && n == kStrip) {
        pass_row<M, T, kPass, true>(x, s, here, kStrip, lanes, r + j, t + j, kept, kStrip,
                                    sums + j);
        continue;
      }
      if (has_metric(M) && begins(kPass)) std::fill_n(kept, 2 * strip, 0.0f);
      pass_row<M, T, kPass, true>(x, s, here, n, lanes, r + j, t + j, kept, strip, sums + j);
    }
  }
}

// kSweep over rows [begin, end) of a part of a tile that is kept, where `awake`.
template <Method M>
void sweep(const Tile& tile, const Part& part, i64 begin, i64 end, const float* r, const float* t,
           const char* awake, const float* stored, float* sums) {
  const i64 lanes = tile.lanes();
  for (i64 j = part.column; j < part.column + part.columns; j += kStrip) {
    const i64 strip = tile.strip<M>(j);
    for (i64 row = begin; row < end; row += kClose) {
      const float* kept = stored + tile.place<M>(j, row);
      const i64 rows = std::min(kClose, end - row);
      for (i64 k = 0; k < strip; k += kLanes) {
        if (awake[(j + k) / kLanes]) sweep_lanes(rows, 2 * strip, strip, lanes, r + j + k, t + j + k, kept + k, sums + j + k);
      }
    }
  }
}

template <Method M, class T>
void pass_entries(const Pointers<T>& x, const Step& s, i64 begin, i64 end) {
  if (is_dual(M) && s.begins_stage) begin_stage<M>(x, begin, end - begin);
  const auto pass = s.entry_threshold == 0 ? pass_row<M, T, kFree, false>
                    : s.counts             ? pass_row<M, T, kCounted, false>
                                           : pass_row<M, T, kEntries, false>;
  pass(x, s, begin, end - begin, 0, nullptr, nullptr, nullptr, 0, nullptr);
}

}  // namespace dualprox
