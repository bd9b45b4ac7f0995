// Drawing a token for each row of logits, a block a row, and the counter-based numbers that decide.
//
// Weights exp((x - max) / temperature) are at most 1 and are summed as 40-bit fixed-point numbers:
// integer sums are exact, so the draw depends on no order and histograms may use integer atomics.
// What is lost are weights below 1e-12 of the largest.
#pragma once

#include "ops/cuda/device.h"
#include "ops/cuda/rows_params.h"
#include "random/philox.h"

namespace tabes::gpu {

constexpr int kSampleThreads = 512, kDigits = 256;
using Mass = unsigned long long;

struct SampleShared {
  Mass count[kDigits], mass[kDigits];
  Mass warps[kSampleThreads / kWarp];
  float tops[kSampleThreads / kWarp];
  uint32_t key;
  Mass above_count, above_mass, answer;
};

// A row's tokens by weight.
template <typename T>
struct Weights {
  const T* x;
  int64_t vocab;
  float top, inverse_temperature;

  TABES_DEVICE float operator()(int64_t i) const {
    const float d = (to_float(x[i]) - top) * inverse_temperature;
    return d < kLowest ? 0.0f : expf(d);  // a forbidden token's is exactly zero
  }
};
// Of a row with a NaN or +inf, which has no weights, zero.
TABES_DEVICE Mass fixed(float weight) {
  return static_cast<Mass>(fmaxf(weight, 0.0f) * 0x1p40f);  // fmaxf leaves NaN out
}

// The first index at which the running sum of amount(0), amount(1), ... exceeds `target`; 0 if none
// does. A warp has a stretch of the row; the one in which it happens walks through it.
template <typename Amount>
TABES_DEVICE int64_t first_beyond(const Amount& amount, int64_t count, Mass target,
                                  SampleShared& shared) {
  constexpr int kWarps = kSampleThreads / kWarp;
  const int64_t stretch = (count + kWarps - 1) / kWarps;
  const int64_t from = warp_index() * stretch;
  const int64_t to = from + stretch < count ? from + stretch : count;
  Mass own = 0;
  for (int64_t i = from + lane_index(); i < to; i += kWarp) own += amount(i);
  own = sum_lanes(own);
  if (lane_index() == 0) shared.warps[warp_index()] = own;
  if (thread_index() == 0) shared.answer = 0;
  sync_block();
  Mass before = 0;
  for (int w = 0; w < warp_index(); ++w) before += shared.warps[w];
  if (before <= target && before + own > target) {
    for (int64_t start = from; start < to; start += kWarp) {
      const int64_t i = start + lane_index();
      Mass sum = i < to ? amount(i) : 0;
      for (int step = 1; step < kWarp; step *= 2) {
        const int lane = lane_index() - step;
        const Mass left = shuffle(sum, lane < 0 ? lane_index() : lane);
        if (lane >= 0) sum += left;
      }
      const Mass last = shuffle(sum, kWarp - 1);
      if (before + last > target) {
        const Mass previous = i < to ? sum - amount(i) : sum;
        if (before + sum > target && before + previous <= target) shared.answer = i;
        break;
      }
      before += last;
    }
  }
  sync_block();
  const int64_t answer = static_cast<int64_t>(shared.answer);
  sync_block();
  return answer;
}

// Where a row, taken from its likeliest token on (equal ones by index), has had enough.
struct Cut {
  uint32_t key;  // the weight's bits there, which order as the weights do
  Mass ties;     // tokens of just that weight that belong to it
  Mass mass;     // of all tokens up to there
};

enum class Enough { count, reach, pass };

// Finds the weight digit by digit: how much lies above each value of the next eight bits.
template <typename T>
TABES_DEVICE Cut descend(const Weights<T>& weights, Enough kind, Mass target,
                         SampleShared& shared) {
  const auto enough = [&](Mass count, Mass mass) {
    return kind == Enough::count   ? count >= target
           : kind == Enough::reach ? mass >= target
                                   : mass > target;
  };
  if (thread_index() == 0) {
    shared.key = 0;
    shared.above_count = shared.above_mass = 0;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int d = thread_index(); d < kDigits; d += kSampleThreads) {
      shared.count[d] = shared.mass[d] = 0;
    }
    sync_block();
    const uint32_t key = shared.key;
    for (int64_t i = thread_index(); i < weights.vocab; i += kSampleThreads) {
      const float weight = weights(i);
      const uint32_t bits = float_bits(weight);
      if (shift < 24 && bits >> (shift + 8) != key >> (shift + 8)) continue;
      shared_add(&shared.count[bits >> shift & 255], 1);
      shared_add(&shared.mass[bits >> shift & 255], fixed(weight));
    }
    sync_block();
    if (thread_index() == 0) {
      int digit = kDigits - 1;
      for (; digit > 0; --digit) {
        const Mass count = shared.above_count + shared.count[digit];
        const Mass mass = shared.above_mass + shared.mass[digit];
        if (enough(count, mass)) break;
        shared.above_count = count;
        shared.above_mass = mass;
      }
      shared.key = key | static_cast<uint32_t>(digit) << shift;
    }
    sync_block();
  }
  const Mass each = fixed(bits_float(shared.key));
  Mass ties = 1;
  if (kind == Enough::count) {
    ties = target - shared.above_count;
  } else if (each > 0) {
    const Mass missing = target > shared.above_mass ? target - shared.above_mass : 0;
    ties = kind == Enough::reach ? (missing + each - 1) / each : missing / each + 1;
    if (ties == 0) ties = 1;
  }
  const Cut cut{shared.key, ties, shared.above_mass + ties * each};
  sync_block();
  return cut;
}

template <typename T>
TABES_DEVICE void sample_row(const SampleParams& p, char* memory) {
  SampleShared& shared = *reinterpret_cast<SampleShared*>(memory);
  const int64_t row = block_x();
  Weights<T> weights{static_cast<const T*>(p.logits) + row * p.vocab, p.vocab, -infinity(),
                     p.inverse_temperature};
  float top = -infinity();
  for (int64_t i = thread_index(); i < p.vocab; i += kSampleThreads) {
    top = fmaxf(top, to_float(weights.x[i]));
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) top = fmaxf(top, shuffle_xor(top, mask));
  if (lane_index() == 0) shared.tops[warp_index()] = top;
  sync_block();
  for (int w = 0; w < kSampleThreads / kWarp; ++w) top = fmaxf(top, shared.tops[w]);
  weights.top = top;

  const double u = p.uniforms[row];
  // u < 1, but its product may round up to the whole.
  const auto target = [&](Mass mass) {
    const Mass at = static_cast<Mass>(u * static_cast<double>(mass));
    return at < mass ? at : mass - (mass > 0);
  };
  const auto mass_at = [&](int64_t i) { return fixed(weights(i)); };
  Mass total = 0;
  for (int64_t i = thread_index(); i < p.vocab; i += kSampleThreads) total += mass_at(i);
  total = sum_block(total, shared.warps);
  int64_t token;
  const bool all = p.top_k == 0 || p.top_k >= p.vocab;
  if (all && p.top_p >= 1.0) {
    token = first_beyond(mass_at, p.vocab, target(total), shared);
  } else {
    if (!all) total = descend(weights, Enough::count, static_cast<Mass>(p.top_k), shared).mass;
    if (p.top_p < 1.0) {
      const double reach = p.top_p * static_cast<double>(total);
      Mass wanted = static_cast<Mass>(reach);
      if (static_cast<double>(wanted) < reach) ++wanted;
      total = descend(weights, Enough::reach, wanted, shared).mass;
    }
    const Cut cut = descend(weights, Enough::pass, target(total), shared);
    const auto tied = [&](int64_t i) { return Mass{float_bits(weights(i)) == cut.key}; };
    token = first_beyond(tied, p.vocab, cut.ties - 1, shared);
  }
  if (thread_index() == 0) p.tokens[row] = token;
}

TABES_DEVICE void fill_uniforms(const UniformParams& p) {
  const int64_t i = int64_t{block_x()} * block_threads() + thread_index();
  if (i >= p.count) return;
  p.out[i] = counter_uniform(p.seed, static_cast<Stream>(p.stream), p.sequences[i], p.positions[i],
                             p.steps[i]);
}

}  // namespace tabes::gpu
