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
  Room<double> r, lower;
  Room<float> r_columns, t_columns;

  void reset(const Tile& tile, i64 sums_of_column) {
    sums = sums_of_column;
    lanes = tile.lanes();
    std::fill_n(columns.of(size()), size(), 0);
    r.of(tile.groups()), lower.of(tile.groups());
    // Lanes beyond the last column are dead.
    std::fill_n(r_columns.of(lanes), lanes, 0);
    std::fill_n(t_columns.of(lanes), lanes, 1);
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

  // Decides which groups are dead, and where Newton's method starts. True if it is needed.
  //
  // h ||a|| is the mean of order -2 of the d_i r + t with weights a_i^2: at most their arithmetic
  // mean, hence the lower bound, and near it less 3/2 variance / mean, hence the guess.
  bool start(const Tile& tile, const Part& part, double t) {
    fold(tile, part);
    const double* __restrict squares = columns.data() + part.column;
    const double* __restrict slopes = squares + lanes;
    const double* __restrict bends = slopes + lanes;
    double* __restrict own = r.data() + part.group;
    double* __restrict least = lower.data() + part.group;
    i64 alive = 0;
    for (i64 g = 0; g < part.groups; ++g) {
      const double norm = std::sqrt(squares[g]), over = 1 / squares[g], mean = slopes[g] * over;
      const double variance = std::max(bends[g] * over - mean * mean, 0.0);
      const double low = (norm - t) / mean, share = low / norm, bend = 1.5 * variance * share;
      const double slope = std::max(mean - bend * (2 - mean * share), mean / 3);
      const double guess = low + std::min(bend * low / slope, low);
      // Without slopes any r > 0 will do; weights are of order one.
      const bool known = slopes[g] > kTiny && slopes[g] < kInfinity;
      const bool live = norm > t && norm < kInfinity;
      own[g] = live ? (known ? guess : 1) : norm <= t ? 0 : norm - norm;  // NaN, or infinity's
      least[g] = live ? (known ? low : 0) : -1;
      alive += live;
    }
    clear(part);
    to_columns(tile, part, t);
    return alive > 0;
  }

  // Moves every r by the sums of a sweep. True if another is needed.
  bool advance(const Tile& tile, const Part& part, double t, bool near) {
    fold(tile, part);
    const double* __restrict totals = columns.data() + part.column;
    const double* __restrict rises = totals + lanes;
    const double* __restrict bends = rises + lanes;
    const double* __restrict twists = bends + lanes;
    double* __restrict own = r.data() + part.group;
    const double* __restrict bound = lower.data() + part.group;
    i64 moving = 0;
    for (i64 g = 0; g < part.groups; ++g) {
      const double root = std::sqrt(totals[g]), over = totals[g] / rises[g];
      const double v = bends[g] / rises[g] * over, w = twists[g] / rises[g] * over * over;
      // With f = h - 1: the steps -f/f', f f''/(2 f'^2) and f^2 f'''/(6 f'^3).
      const double newton = (root - 1) * over, second = 1.5 * (root - 1) * (v - 1);
      const double third = (root - 1) * (root - 1) * (2.5 - 4.5 * v + 2 * w);
      const double halley = newton / (1 - second);
      const double householder = newton * (1 - second) / (1 - 2 * second + third);
      const bool curved = near && std::fabs(second) < 0.3 && std::fabs(third) < 0.1;
      // Zero is no place to go on from. Sums out of range say on which side of the root r lies.
      const double least = std::max(own[g] / kStride, bound[g]);
      double ahead = std::max(own[g] + (curved ? householder : newton), least);
      if (totals[g] == kInfinity || rises[g] == kInfinity) ahead = own[g] * kStride;
      if (totals[g] == 0 || rises[g] == 0) ahead = least;
      const double moved = std::fabs(ahead - own[g]), off = std::fabs(householder - halley);
      const bool small = moved <= kSmallStep * own[g];
      const bool close = curved && off <= kSmallDifference * ahead && moved <= 0.25 * ahead;
      moving += bound[g] >= 0 && !(small || close);
      own[g] = bound[g] >= 0 ? ahead : own[g];
    }
    clear(part);
    to_columns(tile, part, t);
    return moving > 0;
  }

  // Solves for the groups of a part, whose sums of kGather are there; returns the sweeps it took.
  // sweep() adds the sums of kSweep.
  template <class Sweep>
  i64 solve(const Tile& tile, const Part& part, double t, Sweep&& sweep) {
    i64 sweeps = 0;
    for (bool more = start(tile, part, t); more && sweeps < kMostSweeps; ++sweeps) {
      sweep();
      more = advance(tile, part, t, sweeps < 6);
    }
    return sweeps;
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
