// Policies that reveal as many rows as they trust.
#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "batch/device_select.h"
#include "batch/select.h"
#include "policies/kinds.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Reveals, in each sequence, a leading part of the rows in one order; `take` says how long it is.
class Prefix : public NamedPolicy {
 public:
  using NamedPolicy::NamedPolicy;
  Pace pace() const override { return Pace::adaptive; }

  Decision decide(const StepContext& context) const override {
    const Column score(order(context.predictions));
    Decision decision(score.held);
    const auto& cu = context.eligible.cu_rows;
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      std::vector<double> sorted(score.data() + cu[b], score.data() + cu[b + 1]);
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      decision.count.push_back(std::max<int64_t>(1, take(sorted)));
    }
    return decision;
  }

  bool on_device(const Denoiser&) const override { return true; }
  DeviceDecision decide_on_device(const DeviceStep& step) const override {
    DeviceDecision decision;
    decision.score = order(step.predictions);
    decision.count = take_on_device(step).clamp_min(1);
    return decision;
  }

 private:
  virtual at::Tensor order(const Predictions& predictions) const = 0;
  // How many of the scores, which fall, are taken.
  virtual int64_t take(const std::vector<double>& scores) const = 0;
  virtual at::Tensor take_on_device(const DeviceStep& step) const = 0;
};

class Threshold final : public Prefix {
 public:
  explicit Threshold(const Settings& s) : Prefix(s), tau_(s["tau"]) {}

 private:
  at::Tensor order(const Predictions& p) const override { return p.confidence; }
  int64_t take(const std::vector<double>& c) const override {
    return std::count_if(c.begin(), c.end(), [&](double x) { return x >= tau_; });
  }
  at::Tensor take_on_device(const DeviceStep& step) const override {
    return (step.predictions.confidence.ge(tau_) & step.valid).sum(1);
  }
  double tau_;
};

class Factor final : public Prefix {
 public:
  explicit Factor(const Settings& s) : Prefix(s), f_(s["f"]) {}

 private:
  at::Tensor order(const Predictions& p) const override { return p.confidence; }
  int64_t take(const std::vector<double>& c) const override { return within_factor(c, f_); }
  at::Tensor take_on_device(const DeviceStep& step) const override {
    return within_factor(step.predictions.confidence, step.valid, f_);
  }
  double f_;
};

class EntropyBound final : public Prefix {
 public:
  explicit EntropyBound(const Settings& s) : Prefix(s), gamma_(s["gamma"]) {}

 private:
  at::Tensor order(const Predictions& p) const override { return p.entropy.neg(); }
  int64_t take(const std::vector<double>& negative) const override {
    // The largest of the first k entropies is the k-th: what must fit the bound is the sum of
    // those before it.
    double before = 0;
    size_t k = 0;
    while (k < negative.size() && before <= gamma_) before -= negative[k++];
    return static_cast<int64_t>(k);
  }
  at::Tensor take_on_device(const DeviceStep& step) const override {
    const at::Tensor rising =
        std::get<0>(at::sort(at::where(step.valid, step.predictions.entropy, kInfinity), 1));
    // What comes before each, summed as the host does.
    const at::Tensor before =
        at::constant_pad_nd(at::cumsum(rising, 1).narrow(1, 0, rising.size(1) - 1), {1, 0});
    return (before.le(gamma_) & rising.isfinite()).sum(1);
  }
  double gamma_;
};

}  // namespace

std::shared_ptr<const Policy> make_threshold(const Settings& s) {
  return std::make_shared<const Threshold>(s);
}

std::shared_ptr<const Policy> make_factor(const Settings& s) {
  return std::make_shared<const Factor>(s);
}

std::shared_ptr<const Policy> make_entropy_bound(const Settings& s) {
  return std::make_shared<const EntropyBound>(s);
}

}  // namespace tabes
