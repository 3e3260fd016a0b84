// The norm of each group of a tile: the root r of sum_i (a_i / (d_i r + t))^2 = 1.
//
// h(r) = total(r)^(-1/2) is concave and increasing, so Newton's method climbs to h = 1 from the
// left and lands there from the right. Near the root Householder's step of order four needs one
// sweep where Newton's needs three; how far it is from Halley's, of order three, says how good
// Halley's was.

#pragma once

#include <limits>

#include "passes.h"
#include "room.h"

namespace dualprox {

constexpr int kMostSweeps = 60;
// A step of Newton's, or a difference from Halley's step, relative to r, after which another sweep
// would be lost in float32's rounding.
constexpr double kSmallStep = 3.4526698e-4, kSmallDifference = 1e-5;
// Sums of float32 numbers below this may have lost digits, or all, to underflow.
constexpr double kTiny = 1e-30, kInfinity = std::numeric_limits<double>::infinity();
constexpr double kStride = 1024;  // by which r changes at most where sums over- or underflow

struct Newton {
  i64 sums;   // of each column: kSums, or one
  i64 lanes;  // of the tile
  Room<double> columns;  // their sums over all rows
  Room<double> r, lower;  // lower is -1 once a group's r is found
  Room<float> r_columns, t_columns;
  Room<char> awake;  // of kLanes columns each: whether a group there is still to be found

  void reset(const Tile& tile, i64 sums_of_column) {
    sums = sums_of_column;
    lanes = tile.lanes();
    std::fill_n(columns.of(size()), size(), 0);
    r.of(tile.groups()), lower.of(tile.groups());
    // Lanes beyond the last column are dead.
    std::fill_n(r_columns.of(lanes), lanes, 0);
    std::fill_n(t_columns.of(lanes), lanes, 1);
    awake.of(lanes / kLanes);
  }

  i64 size() const { return sums * lanes; }

  // Adds the sums of some rows, and zeroes them.
  template <class Float>
  static void add(Float* __restrict from, double* __restrict to, i64 size) {
    for (i64 j = 0; j < size; ++j) {
      to[j] += from[j];
      from[j] = 0;
    }
  }

  // The same for a part.
  void add(float* from, const Part& part) {
    for (i64 sum = 0; sum < sums; ++sum) {
      const i64 at = sum * lanes + part.column;
      add(from + at, columns.data() + at, part.columns);
    }
  }

  // The sums of groups from those of their columns, in place.
  void fold(const Tile& tile, const Part& part) {
    if (tile.inner == 1) return;
    for (i64 sum = 0; sum < sums; ++sum) {
      double *from = columns.data() + sum * lanes + part.column, *to = from;
      for (i64 g = 0; g < part.groups; ++g) {
        double all = 0;
        for (const double* end = from + tile.inner; from < end; ++from) all += *from;
        *to++ = all;
      }
    }
  }

  void clear(const Part& part) {
    for (i64 sum = 0; sum < sums; ++sum) {
      std::fill_n(columns.data() + sum * lanes + part.column, part.columns, 0);
    }
  }

  // The scale of each group, for a metric that is a number.
  void scale(const Tile& tile, double t) {
    fold(tile, tile.whole());
    const double* __restrict squares = columns.data();
    double* __restrict scales = r.data();
    for (i64 g = 0; g < tile.groups(); ++g) {
      const double norm = std::sqrt(squares[g]);
      // "<=", not the negated ">": a NaN norm is not taken for a dead group.
      scales[g] = norm <= t ? 0 : 1 - t / norm;
    }
    to_columns(tile, tile.whole(), t);
  }

  // Which groups stay, whole, where each that lives costs t: those that lower the objective by more
  // than that, by 1/2 sum a^2 / d.
  void choose(const Tile& tile, double t) {
    fold(tile, tile.whole());
    for (i64 g = 0; g < tile.groups(); ++g) r.data()[g] = columns.data()[g] <= 2 * t ? 0 : 1;
    to_columns(tile, tile.whole(), 0);
  }

  // The root near the lower bound `low`, from the sums of a^2, d a^2 and d^2 a^2.
  //
  // h ||a|| is the mean of order -2 of the d_i r + t with weights a_i^2: at most their arithmetic
  // mean, hence the lower bound, and near it less 3/2 variance / mean, hence the guess.
  static INLINE double guess_near(double low, double norm, double mean, double bend) {
    const double variance = std::max(bend / (norm * norm) - mean * mean, 0.0), share = low / norm;
    const double pull = 1.5 * variance * share;
    const double slope = std::max(mean - pull * (2 - mean * share), mean / 3);
    return low + std::min(pull * low / slope, low);
  }

  // The root of the equation of two slopes whose sums of (a/d)^2, a^2/d, a^2 and d a^2 are m0 to m3.
  //
  // It is the Gauss quadrature of the sum over all entries, right to first order in r where r is
  // small and to second order in 1/r where it is large.
  static INLINE double guess_between(double low, double t, double m0, double m1, double m2,
                                     double m3) {
    const double spread = m0 * m2 - m1 * m1;
    const bool alike = !(spread > 1e-5 * m0 * m2);  // rounding is all that is left, or NaN
    // The slopes are the roots of x^2 - b x + c.
    const double b = (m0 * m3 - m1 * m2) / spread, c = (m1 * m3 - m2 * m2) / spread;
    const double large = 0.5 * (b + std::sqrt(std::max(b * b - 4 * c, 0.0)));
    const double x = alike ? m2 / m1 : large, y = alike ? x : c / large;
    const double share = alike ? 1 : (m1 - y * m0) / (x - y) * x * x / m2;  // of x in a^2
    double r = low;
    for (int k = 0; k < 3; ++k) {  // Halley's steps
      const double p = 1 / (x * r + t), q = 1 / (y * r + t);
      const double total = m2 * share * p * p, other = m2 * (1 - share) * q * q;
      const double rise = total * x * p + other * y * q;
      const double bend = total * (x * p) * (x * p) + other * (y * q) * (y * q);
      const double over = (total + other) / rise, f = std::sqrt(total + other) - 1;
      r += f * over / (1 - std::min(1.5 * f * (bend / rise * over - 1), 0.5));
    }
    return r > low && r < kInfinity ? r : low;
  }

  // Decides which groups are dead, and where Newton's method starts. True if it is needed.
  template <bool kEnds>
  bool start(const Tile& tile, const Part& part, double t) {
    fold(tile, part);
    const double* __restrict squares = columns.data() + part.column;
    const double* __restrict slopes = squares + lanes;
    const double* __restrict thirds = slopes + lanes;
    const double* __restrict fourths = thirds + lanes;
    double* __restrict own = r.data() + part.group;
    double* __restrict least = lower.data() + part.group;
    for (i64 g = 0; g < part.groups; ++g) {
      const double norm = std::sqrt(squares[g]), mean = slopes[g] / squares[g];
      const double low = (norm - t) / mean;
      const double guess =
          kEnds ? guess_between(low, t, fourths[g], thirds[g], squares[g], slopes[g])
                : guess_near(low, norm, mean, thirds[g]);
      // Without slopes any r > 0 will do; weights are of order one.
      const bool known = (slopes[g] > kTiny) & (slopes[g] < kInfinity);
      const bool live = (norm > t) & (norm < kInfinity);
      const double other = norm <= t ? 0 : norm - norm;  // NaN, or infinity's
      own[g] = live ? (known ? guess : 1) : other;
      least[g] = live ? (known ? low : 0) : -1;
    }
    clear(part);
    to_columns(tile, part, t);
    return wake(tile, part);
  }

  // Moves every r by the sums of a sweep. True if another is needed.
  bool advance(const Tile& tile, const Part& part, double t, bool near) {
    fold(tile, part);
    const double* __restrict totals = columns.data() + part.column;
    const double* __restrict rises = totals + lanes;
    const double* __restrict bends = rises + lanes;
    const double* __restrict twists = bends + lanes;
    double* __restrict own = r.data() + part.group;
    double* __restrict bound = lower.data() + part.group;
    const double curving = near ? 0.3 : 0;  // no choice within the loop is a branch
    for (i64 g = 0; g < part.groups; ++g) {
      const double root = std::sqrt(totals[g]), over = totals[g] / rises[g];
      const double v = bends[g] / rises[g] * over, w = twists[g] / rises[g] * over * over;
      // With f = h - 1: the steps -f/f', f f''/(2 f'^2) and f^2 f'''/(6 f'^3).
      const double newton = (root - 1) * over, second = 1.5 * (root - 1) * (v - 1);
      const double third = (root - 1) * (root - 1) * (2.5 - 4.5 * v + 2 * w);
      const double halley = newton / (1 - second);
      const double householder = newton * (1 - second) / (1 - 2 * second + third);
      const bool curved = (std::fabs(second) < curving) & (std::fabs(third) < 0.1);
      // Zero is no place to go on from. Sums out of range say on which side of the root r lies.
      const double least = std::max(own[g] / kStride, bound[g]);
      double ahead = std::max(own[g] + (curved ? householder : newton), least);
      ahead = (totals[g] == kInfinity) | (rises[g] == kInfinity) ? own[g] * kStride : ahead;
      ahead = (totals[g] == 0) | (rises[g] == 0) ? least : ahead;
      const double moved = std::fabs(ahead - own[g]), off = std::fabs(householder - halley);
      const bool small = moved <= kSmallStep * own[g];
      const bool close =
          curved & (off <= kSmallDifference * ahead) & (moved <= 0.25 * ahead);
      own[g] = bound[g] >= 0 ? ahead : own[g];
      bound[g] = small | close ? -1 : bound[g];
    }
    clear(part);
    to_columns(tile, part, t);
    return wake(tile, part);
  }

  // Solves for the groups of a part, whose sums of kGather are there; returns the sweeps it took.
  // sweep() adds the sums of kSweep.
  template <bool kEnds, class Sweep>
  i64 solve(const Tile& tile, const Part& part, double t, Sweep&& sweep) {
    i64 sweeps = 0;
    for (bool more = start<kEnds>(tile, part, t); more && sweeps < kMostSweeps; ++sweeps) {
      sweep();
      more = advance(tile, part, t, sweeps < 6);
    }
    return sweeps;
  }

  // True if any group of the part is still to be found.
  bool wake(const Tile& tile, const Part& part) {
    bool any = false;
    std::fill_n(awake.data() + part.column / kLanes, (part.columns + kLanes - 1) / kLanes, 0);
    for (i64 g = part.group; g < part.group + part.groups; ++g) {
      if (lower.data()[g] < 0) continue;
      const i64 last = ((g + 1) * tile.inner - 1) / kLanes;
      for (i64 j = g * tile.inner / kLanes; j <= last; ++j) awake.data()[j] = 1;
      any = true;
    }
    return any;
  }

  void to_columns(const Tile& tile, const Part& part, float t) {
    i64 j = part.column;
    for (i64 g = part.group; g < part.group + part.groups; ++g) {
      const float norm = float(r.data()[g]);
      for (i64 end = j + tile.inner; j < end; ++j) {
        r_columns.data()[j] = norm;
        // A dead group's d r + t may be 0, and 0 / 0 must not arise.
        t_columns.data()[j] = norm == 0 ? 1 : t;
      }
    }
  }
};

}  // namespace dualprox
