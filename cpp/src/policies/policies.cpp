// The policies by name, with the settings each takes.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "messages.h"
#include "ops/ops.h"
#include "policies/kinds.h"
#include "random/philox.h"
#include "tabes/boe.h"
#include "tabes/policy.h"

namespace tabes {
namespace {

// Orders by one column of the predictions.
class ByColumn final : public Policy {
 public:
  ByColumn(const char* name, at::Tensor Predictions::* column, bool least = false)
      : name_(name), column_(column), least_(least) {}
  std::string name() const override { return name_; }
  Decision decide(const StepContext& context) const override {
    const at::Tensor& values = context.predictions.*column_;
    return least_ ? values.neg() : values;
  }
  bool on_device(const Denoiser&) const override { return true; }
  DeviceDecision decide_on_device(const DeviceStep& step) const override {
    const at::Tensor& values = step.predictions.*column_;
    return least_ ? values.neg() : values;
  }

 private:
  const char* name_;
  at::Tensor Predictions::* column_;
  bool least_;
};

// A score for every eligible row from its sequence and its row number.
template <typename F>
at::Tensor row_scores(const StepContext& context, F&& score) {
  const RowSet& eligible = context.eligible;
  at::Tensor scores = at::empty({eligible.count()}, at::kDouble);
  const at::Tensor rows = eligible.rows.to(at::kCPU);
  for (size_t b = 0; b + 1 < eligible.cu_rows.size(); ++b) {
    for (int64_t i = eligible.cu_rows[b]; i < eligible.cu_rows[b + 1]; ++i) {
      const int64_t position = rows.const_data_ptr<int64_t>()[i] - context.batch.cu_seqlens[b];
      scores.data_ptr<double>()[i] = score(b, i, position);
    }
  }
  return scores;
}

// A score per (seed, sequence, position, step), so that the order of one sequence does not depend
// on what else is in the batch.
class Random final : public Policy {
 public:
  std::string name() const override { return "random"; }
  Decision decide(const StepContext& c) const override {
    return row_scores(c, [&](size_t b, int64_t, int64_t position) {
      return counter_uniform(c.seed, Stream::order, c.sequence[b], position, c.step[b]);
    });
  }
  bool on_device(const Denoiser&) const override { return true; }
  DeviceDecision decide_on_device(const DeviceStep& s) const override {
    const auto flat = [&](const at::Tensor& t) {
      return t.expand_as(s.position).reshape(-1).contiguous();
    };
    return ops::counter_uniforms(flat(s.sequence.unsqueeze(1)), flat(s.position), flat(s.step),
                                 s.seed, Stream::order)
        .view(s.position.sizes());
  }
};

// PC-Sampler's weight of positions, without the corpus frequencies of its other factor.
class PositionWeighted final : public Policy {
 public:
  explicit PositionWeighted(double decay) : decay_(decay) {}
  std::string name() const override { return "pc_sampler"; }
  Decision decide(const StepContext& c) const override {
    const Column confidence(c.predictions.confidence);
    return row_scores(c, [&](size_t b, int64_t i, int64_t position) {
      return confidence[i] * std::exp(-decay_ * static_cast<double>(position - c.first[b]));
    });
  }
  bool on_device(const Denoiser&) const override { return true; }
  DeviceDecision decide_on_device(const DeviceStep& s) const override {
    const at::Tensor distance = (s.position - s.first.unsqueeze(1)).to(at::kDouble);
    return s.predictions.confidence * (distance * -decay_).exp();
  }

 private:
  double decay_;
};

// BoE's order without its gradient: what is sure, and of the rest what stands apart.
class Spread final : public Policy {
 public:
  explicit Spread(const Settings& s) : steering_(options(s)) {}
  std::string name() const override { return "spread"; }
  Pace pace() const override { return steering_.pace(); }
  Decision decide(const StepContext& c) const override { return steering_.decide(c); }
  bool on_device(const Denoiser& model) const override { return steering_.on_device(model); }
  DeviceDecision decide_on_device(const DeviceStep& s) const override {
    return steering_.decide_on_device(s);
  }

 private:
  static BoEOptions options(const Settings& s) {
    BoEOptions o;
    o.weight = 0;
    o.n_candidates = s["candidates"];
    o.factor = s["factor"];
    o.spread = s["spread"];
    o.spread_width = s["width"];
    return o;
  }
  BoE steering_;
};

struct Setting {
  const char* name;
  double value, least, most;
  bool whole = false;
};

struct Named {
  const char* name;
  std::vector<Setting> settings;
  std::shared_ptr<const Policy> (*make)(const Settings&);
};

using Made = std::shared_ptr<const Policy>;

const std::vector<Named>& named() {
  constexpr double kLarge = 1e9;
  static const std::vector<Named> policies{
      {"random", {}, [](const Settings&) -> Made { return std::make_shared<const Random>(); }},
      {"confidence",
       {},
       [](const Settings&) -> Made {
         return std::make_shared<const ByColumn>("confidence", &Predictions::confidence);
       }},
      {"margin",
       {},
       [](const Settings&) -> Made {
         return std::make_shared<const ByColumn>("margin", &Predictions::margin);
       }},
      {"entropy",
       {},
       [](const Settings&) -> Made {
         return std::make_shared<const ByColumn>("entropy", &Predictions::entropy, true);
       }},
      {"threshold", {{"tau", 0.9, 0, 1}}, make_threshold},
      {"factor", {{"f", 1.0, 0, kLarge}}, make_factor},
      {"entropy_bound", {{"gamma", 0.1, 0, kLarge}}, make_entropy_bound},
      {"spread",
       {{"spread", 3, 0, kLarge},
        {"width", 3, 1e-6, kLarge},
        {"factor", 1, 0, kLarge},
        {"candidates", 2, 1, kLarge}},
       [](const Settings& s) -> Made { return std::make_shared<const Spread>(s); }},
      {"klass",
       {{"tau", 0.9, 0, 1}, {"epsilon", 0.01, 0, kLarge}, {"history", 2, 1, kLarge, true}},
       make_klass},
      {"info_gain",
       {{"candidates", 8, 1, 1024, true},
        {"position_temperature", 0.2, 1e-6, kLarge},
        {"threshold", 0.8, 0, 2}},
       make_info_gain},
      {"lookum", {{"pool", 5, 1, 1024, true}, {"paths", 2, 1, 1024, true}}, make_lookum},
      {"remdm_cap",
       {{"eta", 0.008, 0, 1}},
       [](const Settings& s) { return make_remdm(ReMDM::cap, s); }},
      {"remdm_rescale",
       {{"eta", 0.015, 0, 1}},
       [](const Settings& s) { return make_remdm(ReMDM::rescale, s); }},
      {"remdm_conf", {}, [](const Settings& s) { return make_remdm(ReMDM::conf, s); }},
      {"remdm_loop",
       {{"eta", 0.02, 0, 1},
        {"t_on", 0.55, 1e-6, 1 - 1e-6},
        {"t_off", 0.05, 1e-6, 1 - 1e-6},
        {"alpha_on", 0.9, 0, 1}},
       [](const Settings& s) { return make_remdm(ReMDM::loop, s); }},
      {"pc_sampler",
       {{"decay", 0.25, 0, kLarge}},
       [](const Settings& s) -> Made {
         return std::make_shared<const PositionWeighted>(s["decay"]);
       }},
      {"oracle", {{"candidates", 3, 1, kLarge}, {"gamma", 1, 0, kLarge}}, make_oracle},
      {"boe", {}, [](const Settings&) -> Made { return std::make_shared<const BoE>(); }},
      {"boe_paper", {}, [](const Settings&) -> Made {
         return std::make_shared<const BoE>(BoEOptions::paper());
       }}};
  return policies;
}

Settings settings(const Named& policy, const PolicyOptions& given) {
  PolicyOptions values;
  for (const Setting& s : policy.settings) values[s.name] = s.value;
  for (const auto& [name, value] : given) {
    const auto known = std::find_if(policy.settings.begin(), policy.settings.end(),
                                    [&](const Setting& s) { return name == s.name; });
    if (known == policy.settings.end()) {
      std::string names;
      for (const Setting& s : policy.settings) names += text(' ', s.name);
      refuse("policy ", policy.name, " has no setting '", name, "'; it takes",
             names.empty() ? " none" : names);
    }
    if (!(value >= known->least && value <= known->most) ||
        (known->whole && value != std::floor(value))) {
      refuse("policy ", policy.name, ": ", name, " must be ", known->whole ? "a whole number " : "",
             "from ", known->least, " to ", known->most, ", not ", value);
    }
    values[name] = value;
  }
  return Settings(std::move(values));
}

}  // namespace

DeviceDecision Policy::decide_on_device(const DeviceStep&) const {
  refuse("policy ", name(), " decides on the host");
}

std::shared_ptr<const Policy> make_policy(const std::string& name, const PolicyOptions& options) {
  for (const Named& p : named()) {
    if (name == p.name) return p.make(settings(p, options));
  }
  std::string known;
  for (const Named& p : named()) known += text(' ', p.name);
  refuse("policy '", name, "' is unknown; known are", known);
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const Named& p : named()) names.emplace_back(p.name);
  return names;
}

}  // namespace tabes
