// The norm of each group of a tile: the root r of sum_i (a_i / (d_i r + t))^2 = 1.
//
// h(r) = total(r)^(-1/2) is concave and increasing, so Newton's method climbs to h = 1 from the
// left and lands there from the right. Near the root Householder's step of order four needs one
// sweep where Newton's needs three; how far it is from Halley's, of order three, says how good
// Halley's was.

#pragma once

#include <limits>
#include <vector>

#include "passes.h"

namespace dualprox {

constexpr int kMostSweeps = 60;
// A step of Newton's, or a difference from Halley's step, relative to r, after which another sweep
// would be lost in float32's rounding.
constexpr double kSmallStep = 3.4526698e-4, kSmallDifference = 1e-5;
// Sums of float32 numbers below this may have lost digits, or all, to underflow.
constexpr double kTiny = 1e-30, kInfinity = std::numeric_limits<double>::infinity();
constexpr double kStride = 1024;  // by which r changes at most where sums over- or underflow

struct Newton {
  i64 sums;                     // of each column: kSums, or one
  std::vector<double> columns;  // their sums over all rows
  std::vector<double> r, lower;
  std::vector<float> r_columns, t_columns;
  i64 sweeps;

  void reset(const Tile& tile, i64 sums_of_column) {
    sums = sums_of_column;
    sweeps = 0;
    columns.assign(sums * tile.width, 0);
    r.resize(tile.groups());
    lower.resize(tile.groups());
    r_columns.resize(tile.width);
    t_columns.resize(tile.width);
  }

  // Adds the sums of some rows, and zeroes them.
  template <class Float>
  static void add(Float* __restrict from, double* __restrict to, size_t size) {
    for (size_t j = 0; j < size; ++j) {
      to[j] += from[j];
      from[j] = 0;
    }
  }

  // The sums of groups from those of their columns, in place.
  void fold(const Tile& tile) {
    if (tile.inner == 1) return;
    for (i64 sum = 0; sum < sums; ++sum) {
      double *from = columns.data() + sum * tile.width, *to = from;
      for (i64 g = 0; g < tile.groups(); ++g) {
        double all = 0;
        for (const double* end = from + tile.inner; from < end; ++from) all += *from;
        *to++ = all;
      }
    }
  }

  void clear() { std::fill(columns.begin(), columns.end(), 0); }

  // The scale of each group, for a metric that is a number.
  void scale(const Tile& tile, double t) {
    fold(tile);
    for (i64 g = 0; g < tile.groups(); ++g) {
      const double norm = std::sqrt(columns[g]);
      // "<=", not the negated ">": a NaN norm is not taken for a dead group.
      r[g] = norm <= t ? 0 : 1 - t / norm;
    }
    clear();
  }

  // Decides which groups are dead, and where Newton's method starts. True if it is needed.
  //
  // h ||a|| is the mean of order -2 of the d_i r + t with weights a_i^2: at most their arithmetic
  // mean, hence the lower bound, and near it less 3/2 variance / mean, hence the guess.
  bool start(const Tile& tile, double t) {
    fold(tile);
    const double *squares = columns.data(), *slopes = squares + tile.width;
    const double* bends = slopes + tile.width;
    i64 alive = 0;
    for (i64 g = 0; g < tile.groups(); ++g) {
      const double norm = std::sqrt(squares[g]), mean = slopes[g] / squares[g];
      const double variance = std::max(bends[g] / squares[g] - mean * mean, 0.0);
      const double low = (norm - t) / mean, bend = 1.5 * variance * low / norm;
      const double slope = std::max(mean - bend * (2 - mean * low / norm), mean / 3);
      const double guess = low + std::min(bend * low / slope, low);
      // Without slopes any r > 0 will do; weights are of order one.
      const bool known = slopes[g] > kTiny && slopes[g] < kInfinity;
      const bool live = norm > t && norm < kInfinity;
      r[g] = live ? (known ? guess : 1) : norm <= t ? 0 : norm - norm;  // NaN, or infinity's
      lower[g] = live ? (known ? low : 0) : -1;
      alive += live;
    }
    clear();
    return alive > 0;
  }

  // Moves every r by the sums of a sweep. True if another is needed.
  bool advance(const Tile& tile) {
    fold(tile);
    const double *totals = columns.data(), *rises = totals + tile.width;
    const double *bends = rises + tile.width, *twists = bends + tile.width;
    const bool near = sweeps < 6;
    i64 moving = 0;
    for (i64 g = 0; g < tile.groups(); ++g) {
      const double root = std::sqrt(totals[g]), u = rises[g] / totals[g];
      const double v = bends[g] / totals[g] / (u * u), w = twists[g] / totals[g] / (u * u * u);
      // With f = h - 1: the steps -f/f', f f''/(2 f'^2) and f^2 f'''/(6 f'^3).
      const double newton = (root - 1) / u, second = 1.5 * (root - 1) * (v - 1);
      const double third = (root - 1) * (root - 1) * (2.5 - 4.5 * v + 2 * w);
      const double halley = newton / (1 - second);
      const double householder = newton * (1 - second) / (1 - 2 * second + third);
      const bool curved = near && std::fabs(second) < 0.3 && std::fabs(third) < 0.1;
      // Zero is no place to go on from. Sums out of range say on which side of the root r lies.
      const double least = std::max(r[g] / kStride, lower[g]);
      double ahead = std::max(r[g] + (curved ? householder : newton), least);
      if (totals[g] == kInfinity || rises[g] == kInfinity) ahead = r[g] * kStride;
      if (totals[g] == 0 || rises[g] == 0) ahead = least;
      const double moved = std::fabs(ahead - r[g]), off = std::fabs(householder - halley);
      const bool small = moved <= kSmallStep * r[g];
      const bool close = curved && off <= kSmallDifference * ahead && moved <= 0.25 * ahead;
      moving += lower[g] >= 0 && !(small || close);
      r[g] = lower[g] >= 0 ? ahead : r[g];
    }
    clear();
    return ++sweeps < kMostSweeps && moving > 0;
  }

  void to_columns(const Tile& tile, float t) {
    for (i64 g = 0, j = 0; g < tile.groups(); ++g) {
      const float norm = float(r[g]);
      for (i64 end = j + tile.inner; j < end; ++j) {
        r_columns[j] = norm;
        // A dead group's d r + t may be 0, and 0 / 0 must not arise.
        t_columns[j] = norm == 0 ? 1 : t;
      }
    }
  }
};

}  // namespace dualprox
