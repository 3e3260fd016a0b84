// One fused step of RMDA, RAMDA, ProxSGD or ProxAdamW for all parameters of a group, on the CPU.
//
// The penalty of a tensor is entry_strength ||w||_1 + group_strength sum_g ||w_g||, its groups a
// grid in memory (grid.py). Every step ends with the subproblem of docs/math.md, whose minimizer is
//
//     z_i = a_i r / (d_i r + t) if ||a|| > t, else 0;   r = ||z|| solves sum_i (a_i/(d_i r + t))^2 = 1
//
// for each group: a = D z0 - v, soft-thresholded where there is an entrywise penalty. Where the
// metric D is a number it is divided out, and z = (1 - t / ||a||) a. Where live groups are counted
// instead, group_strength sum_g [w_g != 0], z_i = a_i / d_i if sum_i a_i^2 / d_i > 2 t, else 0.
//
// A step passes over the entries of some whole groups (a tile) twice, and keeps their a and d in
// between, over which part by part Newton's method sweeps. A tile that fits in cache is passed over
// by one thread; columns too tall for that by all threads together, in wide rows, as memory likes
// it. How parameters are cut into tiles and parts, and so every result, depends on shapes alone,
// not on the number of threads.
//
// The file needs no header of Python or torch: native.py calls it through the C ABI. It is compiled
// once per instruction set (hatch_build.py), and the best that the processor has is loaded.

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "newton.h"

extern "C" {

// One parameter. native.py has the same fields in the same order.
struct Record {
  void* param;
  const void* grad;
  float *first, *second, *anchor;
  void* rest;
  double *step, *penalty_sum, *restart, *eps;
  int64_t parts, outer, groups, inner;  // Grid
  double entry_strength, group_strength;
  int64_t counts;      // whether the strength is of each live group or entry, not of its norm
  int64_t iterations;  // written: Newton steps taken
};

struct Settings {
  int64_t method, bfloat16, maximize, ramp, threads;
  double lr, momentum, beta1, beta2, eps, weight_decay;
  // GOMP_parallel of the OpenMP runtime that torch uses, or null.
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
};

}  // extern "C"

namespace dualprox {
namespace {

constexpr i64 kTile = 200 * 1024;        // entries of a tile that stays in a core's cache...
constexpr i64 kMostTile = 400 * 1024;    // ...or nearly so, rather than be narrow
constexpr i64 kNarrow = 128;  // fewer columns in a row would waste memory's time, twice as many
                              // where rows are not fetched ahead
constexpr i64 kSharedTile = 3072 * 1024; // entries of a tile that stays in the cores' common cache
constexpr i64 kMostStored = 4096 * 1024; // entries of a larger tile are computed anew
constexpr i64 kShares = 16;              // pieces of a tile for all threads
constexpr i64 kWide = 2048;              // most columns of a tile
constexpr i64 kBlock = 128;              // rows whose sums are float32; beyond, float64
constexpr i64 kChunk = 16 * 1024;        // entries of a unit of work without groups
constexpr i64 kShortRun = 32;            // shorter runs lie side by side in a row
constexpr i64 kFold = 256;               // columns into which a longer run is folded
constexpr i64 kSerial = 16 * 1024;       // fewer entries are not worth waking threads

// How a parameter is cut into units of work.
struct Cut {
  enum Kind { kWhole, kColumns, kRuns, kShared } kind = kWhole;
  i64 per_unit = kChunk;  // entries, groups of a row, or runs
  i64 across = 1;         // units side by side
  i64 units = 0;

  Cut(const Record& p, bool grouped, bool swept) {
    const i64 runs = p.parts * p.groups, size = p.outer * p.inner, entries = runs * size;
    if (!grouped || entries == 0) {
      units = (entries + kChunk - 1) / kChunk;
    } else if (folds(p)) {
      kind = size > kSharedTile / 4 ? kShared : kRuns;
      per_unit = kind == kShared ? 1 : std::max<i64>(1, kTile / size);
      units = (runs + per_unit - 1) / per_unit;
    } else {
      const i64 fitting = (swept ? kTile : kMostTile) / size;
      const i64 wide = ((swept ? kNarrow : 2 * kNarrow) + p.inner - 1) / p.inner;
      kind = kMostTile / size >= std::min(wide, p.groups) ? kColumns : kShared;
      const i64 most = kind == kColumns ? std::max(fitting, wide) : kSharedTile / size;
      const i64 widest = std::max<i64>(1, kWide / p.inner);
      per_unit = std::min({p.groups, widest, std::max<i64>(most, kind == kShared ? wide : 1)});
      across = (p.groups + per_unit - 1) / per_unit;
      per_unit = (p.groups + across - 1) / across;
      units = p.parts * across;
    }
  }

  static bool folds(const Record& p) { return p.outer == 1 && p.inner >= kShortRun; }

  // Tile number `unit` of a parameter cut into columns, or run number `unit`.
  Tile tile(const Record& p, i64 unit) const {
    if (folds(p)) {
      const i64 width = std::min(p.inner, kFold);
      return {unit * p.inner, p.inner / width, width, width, p.inner % width, width};
    }
    const i64 part = unit / across, group = unit % across * per_unit, row = p.groups * p.inner;
    const i64 width = std::min(per_unit, p.groups - group) * p.inner;
    return {part * p.outer * row + group * p.inner, p.outer, row, width, 0, p.inner};
  }
};

// Calls body() on `threads` threads: torch's own where its runtime is known.
void on_threads(const Settings& settings, i64 threads, const std::function<void()>& body) {
  if (threads <= 1) {
    body();
  } else if (settings.parallel) {
    settings.parallel([](void* data) { (*static_cast<const std::function<void()>*>(data))(); },
                      const_cast<std::function<void()>*>(&body), unsigned(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (i64 k = 1; k < threads; ++k) others.emplace_back(body);
    body();
    for (auto& other : others) other.join();
  }
}

// A thread with memory of its own.
struct Alone {
  Newton newton;
  Room<float> room, sums;

  float* stored(i64 floats) { return room.of(floats); }

  void reset(i64 size) { std::fill_n(sums.of(size), size, 0); }

  // Calls visit(begin, end, sums) for all rows of a tile, in pieces, and adds the sums in order.
  template <class Visit>
  void rows(const Tile& tile, Visit&& visit) {
    for (i64 row = 0; row < tile.all_rows(); row += kBlock) {
      visit(row, std::min(row + kBlock, tile.all_rows()), sums.data());
      Newton::add(sums.data(), newton.columns.data(), newton.size());
    }
  }

  // The same without sums.
  template <class Visit>
  void move(const Tile& tile, Visit&& visit) {
    visit(0, tile.all_rows());
  }

  static bool takes_parts(const Tile&) { return true; }

  // Calls body(k) for k < count.
  template <class Body>
  void share(i64 count, Body&& body) {
    for (i64 k = 0; k < count; ++k) body(k);
  }
};

// All threads.
struct Together {
  const Settings& settings;
  Room<float>& room;
  Newton newton;
  Room<float> sums;   // of each share
  Room<double> wide;  // the same

  float* stored(i64 floats) { return room.of(floats); }

  void reset(i64 size) {
    std::fill_n(sums.of(kShares * size), kShares * size, 0);
    std::fill_n(wide.of(kShares * size), kShares * size, 0);
  }

  template <class Visit>
  void rows(const Tile& tile, Visit&& visit) {
    const i64 size = newton.size(), all = tile.all_rows();
    share(kShares, [&](i64 k) {
      const i64 end = (k + 1) * all / kShares;
      for (i64 row = k * all / kShares; row < end; row += kBlock) {
        visit(row, std::min(row + kBlock, end), sums.data() + k * size);
        Newton::add(sums.data() + k * size, wide.data() + k * size, size);
      }
    });
    share(kShares, [&](i64 k) {
      const i64 begin = k * size / kShares, end = (k + 1) * size / kShares;
      for (i64 from = 0; from < kShares; ++from) {
        Newton::add(wide.data() + from * size + begin, newton.columns.data() + begin, end - begin);
      }
    });
  }

  template <class Visit>
  void move(const Tile& tile, Visit&& visit) {
    share(kShares, [&](i64 k) {
      visit(k * tile.all_rows() / kShares, (k + 1) * tile.all_rows() / kShares);
    });
  }

  // With few parts threads would idle.
  static bool takes_parts(const Tile& tile) { return tile.parts() >= kShares / 2; }

  template <class Body>
  void share(i64 count, Body&& body) {
    std::atomic<i64> next{0};
    on_threads(settings, std::min(settings.threads, count), [&] {
      for (i64 k; (k = next.fetch_add(1)) < count;) body(k);
    });
  }
};

void raise_to(std::atomic<i64>& most, i64 value) {
  for (i64 now = most; value > now && !most.compare_exchange_weak(now, value);) {
  }
}

// The norms of all groups of a tile whose sums of kGather are there; returns the sweeps it took.
template <Method M, class T, class Team>
i64 find_norms(const Pointers<T>& x, const Step& s, const Tile& tile, float* stored, Team& team) {
  Newton& newton = team.newton;
  const float t = s.group_threshold;
  const float *r = newton.r_columns.data(), *threshold = newton.t_columns.data();
  const char* awake = newton.awake.data();
  if (!stored || !Team::takes_parts(tile)) {
    return newton.solve<has_ends(M)>(tile, tile.whole(), t, [&] {
      team.rows(tile, [&](i64 begin, i64 end, float* sums) {
        stored ? sweep<M>(tile, tile.whole(), begin, end, r, threshold, awake, stored, sums)
               : pass_rows<M, T, kSweep>(x, s, tile, begin, end, r, threshold, nullptr, sums);
      });
    });
  }
  std::atomic<i64> most{0};
  team.share(tile.parts(), [&](i64 k) {
    const Part part = tile.part(k);
    raise_to(most, newton.solve<has_ends(M)>(tile, part, t, [&] {
      for (i64 row = 0; row < tile.all_rows(); row += kBlock) {
        const i64 end = std::min(row + kBlock, tile.all_rows());
        sweep<M>(tile, part, row, end, r, threshold, awake, stored, team.sums.data());
        newton.add(team.sums.data(), part);
      }
    }));
  });
  return most;
}

// A tile's whole step by a team.
template <Method M, class T, class Team>
i64 solve(const Pointers<T>& x, const Step& s, const Tile& tile, Team& team) {
  Newton& newton = team.newton;
  newton.reset(tile, has_metric(M) && !s.counts ? kSums : 1);
  team.reset(newton.size());
  const bool stores = tile.all_rows() * tile.width <= kMostStored;
  float* stored = stores ? team.stored(tile.place<M>(tile.lanes(), 0)) : nullptr;
  const float *r = newton.r_columns.data(), *threshold = newton.t_columns.data();
  team.rows(tile, [&](i64 begin, i64 end, float* sums) {
    s.counts ? pass_rows<M, T, kPrice>(x, s, tile, begin, end, r, threshold, stored, sums)
             : pass_rows<M, T, kGather>(x, s, tile, begin, end, r, threshold, stored, sums);
  });
  i64 sweeps = 0;
  if (s.counts) {
    newton.choose(tile, s.group_threshold);
  } else if (has_metric(M)) {
    sweeps = find_norms<M>(x, s, tile, stored, team);
  } else {
    newton.scale(tile, s.group_threshold);
  }
  team.move(tile, [&](i64 begin, i64 end) {
    pass_rows<M, T, kSpread>(x, s, tile, begin, end, r, threshold, stored, nullptr);
  });
  return sweeps;
}

// Counts the step and returns its scalars. docs/math.md has the formulas.
Step begin(const Settings& o, Record& p) {
  Step s;
  const Method method = Method(o.method);
  s.sign = o.maximize ? -1 : 1;
  double tau = o.lr;
  if (is_dual(method)) {
    s.begins_stage = *p.restart != 0;
    if (s.begins_stage) *p.step = *p.penalty_sum = *p.restart = 0;
    const double t = *p.step += 1, scale = o.lr * std::sqrt(t), weight = 1 - o.momentum;
    tau = *p.penalty_sum += scale;
    s.scale = s.square_scale = float(scale);
    s.weight = float(o.ramp ? std::min(weight * std::sqrt(t), 1.0) : weight);
    if (method == kRMDA) {
      s.linear_scale = float(1 / std::sqrt(t));
      tau /= std::sqrt(t);
    } else {
      *p.eps = o.eps;
    }
  } else {
    const double t = *p.step += 1;
    if (method == kProxSGD) {
      s.scale = float(1 - o.momentum);
      s.linear_scale = float(o.lr);
    } else {
      s.scale = float(1 - o.beta1);
      s.square_keep = float(o.beta2);
      s.square_scale = float(1 - o.beta2);
      s.linear_scale = float(o.lr / (1 - std::pow(o.beta1, t)));
      s.metric_scale = float(1 / std::sqrt(1 - std::pow(o.beta2, t)));
      s.center_scale = float(1 - o.lr * o.weight_decay);
    }
  }
  s.eps = float(o.eps);
  s.entry_threshold = float(tau * p.entry_strength);
  s.group_threshold = float(tau * p.group_strength);
  s.counts = p.counts;
  return s;
}

template <Method M, class T>
void step_all(const Settings& settings, Record* records, i64 count) {
  std::vector<Step> steps;
  std::vector<Cut> cuts;
  std::vector<i64> ends;  // of each parameter's units of work
  std::vector<std::atomic<i64>> sweeps(count);
  i64 entries = 0;
  for (i64 k = 0; k < count; ++k) {
    steps.push_back(begin(settings, records[k]));
    cuts.emplace_back(records[k], steps[k].group_threshold > 0, has_metric(M));
    const i64 units = cuts[k].kind == Cut::kShared ? 0 : cuts[k].units;
    ends.push_back((k ? ends[k - 1] : 0) + units);
    entries += records[k].parts * records[k].outer * records[k].groups * records[k].inner;
  }
  const auto pointers = [&](i64 k) {
    const Record& p = records[k];
    return Pointers<T>{static_cast<T*>(p.param), static_cast<const T*>(p.grad), p.first, p.second,
                       p.anchor, static_cast<bf16*>(p.rest)};
  };
  const auto run = [&](i64 number, Alone& alone) {
    const i64 k = std::upper_bound(ends.begin(), ends.end(), number) - ends.begin();
    const Record& p = records[k];
    const Cut& cut = cuts[k];
    const i64 unit = number - (ends[k] - cut.units), begin = unit * cut.per_unit;
    i64 used = 0;
    if (cut.kind == Cut::kWhole) {
      const i64 all = p.parts * p.outer * p.groups * p.inner;
      pass_entries<M>(pointers(k), steps[k], begin, std::min(begin + cut.per_unit, all));
    } else if (cut.kind == Cut::kColumns) {
      used = solve<M>(pointers(k), steps[k], cut.tile(p, unit), alone);
    } else {
      for (i64 j = begin; j < std::min(begin + cut.per_unit, p.parts * p.groups); ++j) {
        used = std::max(used, solve<M>(pointers(k), steps[k], cut.tile(p, j), alone));
      }
    }
    raise_to(sweeps[k], used);
  };
  const i64 threads = entries < kSerial ? 1 : settings.threads;
  std::atomic<i64> next{0};
  if (!ends.empty() && ends.back() > 0) {
    on_threads(settings, std::min(threads, ends.back()), [&] {
      static thread_local Alone alone;
      for (i64 number; (number = next.fetch_add(1)) < ends.back();) run(number, alone);
    });
  }
  static thread_local Room<float> room;
  Together together{settings, room, {}, {}, {}};
  for (i64 k = 0; k < count; ++k) {
    i64 most = sweeps[k];
    for (i64 unit = 0; cuts[k].kind == Cut::kShared && unit < cuts[k].units; ++unit) {
      const Tile tile = cuts[k].tile(records[k], unit);
      most = std::max(most, solve<M>(pointers(k), steps[k], tile, together));
    }
    records[k].iterations = most;
  }
}

template <Method M>
void step_any(const Settings& settings, Record* records, i64 count) {
  settings.bfloat16 ? step_all<M, bf16>(settings, records, count)
                    : step_all<M, float>(settings, records, count);
}

}  // namespace
}  // namespace dualprox

#define EXPORT extern "C" __attribute__((visibility("default")))

// The digest of the sources, for native.py to see that the library is of its version.
EXPORT const char* dualprox_digest() { return DUALPROX_DIGEST; }

EXPORT void dualprox_step(const Settings* settings, Record* records, int64_t count) {
  using namespace dualprox;
  switch (settings->method) {
    case kRMDA: return step_any<kRMDA>(*settings, records, count);
    case kRAMDA: return step_any<kRAMDA>(*settings, records, count);
    case kProxSGD: return step_any<kProxSGD>(*settings, records, count);
    case kProxAdamW: return step_any<kProxAdamW>(*settings, records, count);
  }
}
