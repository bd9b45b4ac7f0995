// The policies by name, with the settings each takes.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "messages.h"
#include "ops/ops.h"
#include "policies/kinds.h"
#include "policies/settings.h"
#include "random/philox.h"
#include "tabes/boe.h"
#include "tabes/policy.h"

namespace tabes {
namespace {

// Orders by one column of the predictions.
class ByColumn final : public NamedPolicy {
 public:
  ByColumn(const Settings& s, at::Tensor Predictions::* column, bool least = false)
      : NamedPolicy(s), column_(column), least_(least) {}
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
  at::Tensor Predictions::* column_;
  bool least_;
};

// A score for every eligible row from its sequence and its row number.
template <typename F>
at::Tensor row_scores(const StepContext& context, F&& score) {
  const RowSet& eligible = context.eligible;
  at::Tensor scores = at::empty({eligible.count()}, at::kDouble);
  const at::Tensor rows = eligible.on_host();
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
class Random final : public NamedPolicy {
 public:
  using NamedPolicy::NamedPolicy;
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
class PositionWeighted final : public NamedPolicy {
 public:
  explicit PositionWeighted(const Settings& s) : NamedPolicy(s), decay_(s["decay"]) {}
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
class Spread final : public NamedPolicy {
 public:
  explicit Spread(const Settings& s) : NamedPolicy(s), steering_(options(s)) {}
  Pace pace() const override { return steering_.pace(); }
  bool at_least_quota() const override { return true; }
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

using Made = std::shared_ptr<const Policy>;

struct Named {
  const char* name;
  std::vector<Setting> settings;
  Made (*make)(const Settings&);
};

template <typename Kind>
Made made(const Settings& s) {
  return std::make_shared<const Kind>(s);
}

template <at::Tensor Predictions::* column, bool least = false>
Made by_column(const Settings& s) {
  return std::make_shared<const ByColumn>(s, column, least);
}

template <ReMDM strategy>
Made remdm(const Settings& s) {
  return make_remdm(strategy, s);
}

// Policies that numbers set.
const std::vector<Named>& named() {
  constexpr double kLarge = 1e9;
  static const std::vector<Named> policies{
      {"random", {}, made<Random>},
      {"confidence", {}, by_column<&Predictions::confidence>},
      {"margin", {}, by_column<&Predictions::margin>},
      {"entropy", {}, by_column<&Predictions::entropy, true>},
      {"threshold", {{"tau", 0.9, 0, 1}}, make_threshold},
      {"factor", {{"f", 1.0, 0, kLarge}}, make_factor},
      {"entropy_bound", {{"gamma", 0.1, 0, kLarge}}, make_entropy_bound},
      {"spread",
       {{"spread", 3, 0, kLarge},
        {"width", 3, 1e-6, kLarge},
        {"factor", 1, 0, kLarge},
        {"candidates", 2, 1, kLarge}},
       made<Spread>},
      {"klass",
       {{"tau", 0.9, 0, 1}, {"epsilon", 0.01, 0, kLarge}, {"history", 2, 1, kLarge, true}},
       make_klass},
      {"info_gain",
       {{"candidates", 8, 1, 1024, true},
        {"position_temperature", 0.2, 1e-6, kLarge},
        {"threshold", 0.8, 0, 2}},
       make_info_gain},
      {"lookum", {{"pool", 5, 1, 1024, true}, {"paths", 2, 1, 1024, true}}, make_lookum},
      {"remdm_cap", {{"eta", 0.008, 0, 1}}, remdm<ReMDM::cap>},
      {"remdm_rescale", {{"eta", 0.015, 0, 1}}, remdm<ReMDM::rescale>},
      {"remdm_conf", {}, remdm<ReMDM::conf>},
      {"remdm_loop",
       {{"eta", 0.02, 0, 1},
        {"t_on", 0.55, 1e-6, 1 - 1e-6},
        {"t_off", 0.05, 1e-6, 1 - 1e-6},
        {"alpha_on", 0.9, 0, 1}},
       remdm<ReMDM::loop>},
      {"pc_sampler", {{"decay", 0.25, 0, kLarge}}, made<PositionWeighted>},
      {"oracle", {{"candidates", 3, 1, kLarge}, {"gamma", 1, 0, kLarge}}, make_oracle}};
  return policies;
}

// What other decoders call ours.
constexpr Name<const char*> kAliases[] = {{"low_confidence", "confidence"},
                                          {"maskgit_plus", "confidence"},
                                          {"topk_margin", "margin"},
                                          {"eb", "entropy_bound"}};

Settings settings(const Named& policy, const PolicySettings& given) {
  SettingsReader read(policy.name, given);
  PolicySettings values;
  for (const Setting& s : policy.settings) {
    double value = s.value;
    read.number(s.name, value, s.least, s.most, s.whole);
    if (s.whole) {
      values.emplace_back(s.name, static_cast<int64_t>(value));
    } else {
      values.emplace_back(s.name, value);
    }
  }
  read.finish();
  return {policy.name, std::move(values)};
}

Made make(const Notation& notation) {
  std::string name = notation.name;
  if (const char* const* ours = find(kAliases, name)) name = *ours;
  if (name == "boe") return std::make_shared<const BoE>(BoEOptions().with(notation.settings));
  if (name == "boe_paper") {
    return std::make_shared<const BoE>(BoEOptions::paper().with(notation.settings));
  }
  for (const Named& p : named()) {
    if (name == p.name) return p.make(settings(p, notation.settings));
  }
  std::vector<std::string> known = policy_names();
  const std::string all = listed(known);
  for (const auto& alias : kAliases) known.emplace_back(alias.name);
  const std::string hint = did_you_mean(name, known);
  refuse("policy '", quotable(name), "' is unknown", hint,
         hint.empty() ? "; known are " : " Known are ", all);
}

}  // namespace

DeviceDecision Policy::decide_on_device(const DeviceStep&) const {
  refuse("policy ", name(), " decides on the host");
}

PolicyState* PolicyStates::of(const Policy& policy) {
  std::erase_if(entries_, [](const Entry& entry) { return entry.owner.expired(); });
  for (const Entry& entry : entries_) {
    if (entry.owner.lock() == policy.identity_) return entry.state.get();
  }
  entries_.push_back({policy.identity_, policy.begin()});
  return entries_.back().state.get();
}

std::shared_ptr<const Policy> make_policy(const std::string& notation) {
  return make(read_notation(notation));
}

std::shared_ptr<const Policy> make_policy(const std::string& notation,
                                          const PolicySettings& settings) {
  return make_policy(notation, std::string(), settings);
}

std::shared_ptr<const Policy> make_policy(const std::string& notation, const std::string& text,
                                          const PolicySettings& settings) {
  Notation read = read_notation(notation);
  const PolicySettings more = read_settings(read.name, text);
  read.settings.insert(read.settings.end(), more.begin(), more.end());
  read.settings.insert(read.settings.end(), settings.begin(), settings.end());
  return make(read);
}

std::string notation(const Policy& policy, bool defaults) {
  const std::string name = policy.name();
  PolicySettings usual;
  const std::vector<std::string> known = policy_names();
  if (!defaults && std::find(known.begin(), known.end(), name) != known.end()) {
    usual = make_policy(name)->settings();
  }
  std::string settings;
  for (const auto& setting : policy.settings()) {
    if (std::find(usual.begin(), usual.end(), setting) != usual.end()) continue;
    settings += (settings.empty() ? "" : ", ") + setting.first + "=" + written(setting.second);
  }
  return settings.empty() ? name : name + "(" + settings + ")";
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const Named& p : named()) names.emplace_back(p.name);
  names.insert(names.end(), {"boe", "boe_paper"});
  return names;
}

}  // namespace tabes
