// Decodes of a small random model: policies that select on the device, settings, comparison.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "random_models.h"
#include "tabes/tabes.h"

namespace tabes {

inline constexpr int64_t kMask = 3;

inline std::vector<at::Tensor> sequences() {
  std::vector<at::Tensor> result{at::full({13}, kMask, at::kLong), at::full({5}, kMask, at::kLong),
                                 at::full({22}, kMask, at::kLong), at::full({4}, 7, at::kLong)};
  result[2].narrow(0, 0, 6).fill_(9);
  result[2][11] = 4;
  return result;
}

inline std::shared_ptr<const Denoiser> model() {
  at::manual_seed(5);
  RandomWeights weights;
  return make_transformer(small(), weights, at::kCPU, at::kFloat, false);
}

inline BoEOptions without_factor() {
  BoEOptions o;
  o.factor = 0;
  return o;
}

inline std::shared_ptr<const Policy> boe(BoEOptions o) {
  return std::make_shared<const BoE>(std::move(o));
}

struct Case {
  const char* name;
  std::shared_ptr<const Policy> policy;
};

// Policies whose counts the host knows.
inline std::vector<Case> known() {
  BoEOptions product = without_factor(), expected = without_factor(), sparse = without_factor();
  product.rule = ScoreRule::product;
  product.spread = 0;
  expected.draft = DraftKind::expected;
  expected.anti_collapse = 0.5;
  sparse.every = 2;
  sparse.prefilter = Prefilter::margin;
  sparse.min_masked = 4;
  BoEOptions nearest = without_factor(), random = without_factor(), dense = without_factor();
  nearest.probes = ProbeRule::nearest;
  nearest.rho = 0.3;
  random.probes = ProbeRule::random;
  random.rho = 0.1;
  random.context = ContextKind::exact;
  dense.probes = ProbeRule::least_entropic;
  dense.adjoint = AdjointKind::dense;
  dense.alpha = {0.3, 0.7};
  return {{"boe nearest", boe(nearest)},
          {"boe random", boe(random)},
          {"boe dense", boe(dense)},
          {"boe_paper", make_policy("boe_paper")},
          {"confidence", make_policy("confidence")},
          {"margin", make_policy("margin")},
          {"entropy", make_policy("entropy")},
          {"random", make_policy("random")},
          {"pc_sampler", make_policy("pc_sampler")},
          {"spread", make_policy("spread", {{"factor", 0}})},
          {"boe", boe(without_factor())},
          {"boe product", boe(product)},
          {"boe expected", boe(expected)},
          {"boe sparse", boe(sparse)}};
}

inline BoEOptions with_factor(double factor) {
  BoEOptions o;
  o.factor = factor;
  return o;
}

inline std::vector<Case> adaptive() {
  BoEOptions exact = with_factor(2);
  exact.context = ContextKind::exact;
  exact.alpha = {0.3, 0.8};
  return {{"threshold", make_policy("threshold", {{"tau", 0.3}})},
          {"factor", make_policy("factor", {{"f", 2}})},
          {"entropy_bound", make_policy("entropy_bound", {{"gamma", 3}})},
          {"spread", make_policy("spread")},
          {"boe with factor", boe({})},
          {"boe that accepts nothing", boe(with_factor(1e-6))},
          {"boe exact with factor", boe(exact)}};
}

inline std::vector<Case> known_and_adaptive() {
  std::vector<Case> all = known();
  for (Case& c : adaptive()) all.push_back(std::move(c));
  return all;
}

inline std::vector<GenerateOptions> settings() {
  std::vector<GenerateOptions> all(5);
  all[0].steps = 5;
  all[1].steps = 9;
  all[1].temperature = 0.8;
  all[1].seed = 11;
  all[2].steps = 8;
  all[2].block_length = 6;
  all[3].steps = 7;
  all[3].refresh_every = 3;
  all[4].steps = 9;
  all[4].refresh_every = 0;
  all[4].block_length = 8;
  all[4].temperature = 1.0;
  all[4].top_k = 4;
  return all;
}

struct Setting {
  std::string name;
  GenerateOptions options;
};

// Every policy in every setting in which the device can select.
inline std::vector<Setting> settings_of(const std::vector<Case>& cases) {
  std::vector<Setting> all;
  for (const Case& c : cases) {
    for (GenerateOptions options : settings()) {
      // Then probes may be in later blocks.
      if (options.block_length && c.policy->wants_waiting()) continue;
      options.policy = c.policy;
      all.push_back({std::string(c.name) + ", steps " + std::to_string(options.steps), options});
    }
  }
  return all;
}

inline void expect_same(const at::Tensor& a, const at::Tensor& b, double limit) {
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_TRUE(at::allclose(a, b, limit, limit, /*equal_nan=*/true)) << a << b;
}

inline void expect_same(const std::vector<double>& a, const std::vector<double>& b, double limit) {
  expect_same(at::tensor(a, at::kDouble), at::tensor(b, at::kDouble), limit);
}

inline void expect_same_steps(const GenerateResult& a, const GenerateResult& b) {
  for (size_t i = 0; i < a.tokens.size(); ++i) EXPECT_TRUE(at::equal(a.tokens[i], b.tokens[i]));
  ASSERT_EQ(a.trace.size(), b.trace.size());
  for (size_t i = 0; i < a.trace.size(); ++i) {
    const StepRecord &x = a.trace[i], &y = b.trace[i];
    EXPECT_EQ(x.step, y.step);
    EXPECT_EQ(x.steps, y.steps);
    EXPECT_EQ(x.masked, y.masked);
    EXPECT_EQ(x.eligible, y.eligible);
    EXPECT_TRUE(at::equal(x.sequence, y.sequence));
    EXPECT_TRUE(at::equal(x.position, y.position));
    EXPECT_TRUE(at::equal(x.token, y.token));
    EXPECT_TRUE(at::equal(x.by_confidence, y.by_confidence));
    EXPECT_TRUE(at::equal(x.remasked_position, y.remasked_position));
    expect_same(x.confidence, y.confidence, 1e-5);
    expect_same(x.entropy, y.entropy, 1e-5);
    expect_same(x.score, y.score, 1e-5);
    expect_same(x.influence, y.influence, 1e-5);
    expect_same(x.predicted_fall, y.predicted_fall, 1e-5);
    expect_same(x.realised_fall, y.realised_fall, 1e-5);
  }
}

}  // namespace tabes
