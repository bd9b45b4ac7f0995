// ReMDM (arXiv 2503.00307): what is revealed may be masked again. Time t runs from 1 to 0 over a
// block's steps; alpha(t) is the share of positions that are revealed at t.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "policies/kinds.h"
#include "random/philox.h"

namespace tabes {
namespace {

class Remasking final : public NamedPolicy {
 public:
  Remasking(ReMDM strategy, const Settings& s) : NamedPolicy(s), strategy_(strategy) {
    if (strategy != ReMDM::conf) eta_ = s["eta"];
    if (strategy == ReMDM::loop) {
      on_ = s["t_on"];
      off_ = s["t_off"];
      alpha_on_ = s["alpha_on"];
    }
  }

  Pace pace() const override { return Pace::timed; }

  Decision decide(const StepContext& context) const override {
    const RowSet &eligible = context.eligible, &revealed = context.revealed;
    const at::Tensor masked_rows = eligible.on_host();
    const at::Tensor revealed_rows = revealed.on_host();
    const int64_t* masked = masked_rows.const_data_ptr<int64_t>();
    const int64_t* shown = revealed_rows.const_data_ptr<int64_t>();
    Decision decision(at::empty({eligible.count()}, at::kDouble));
    double* score = decision.score.data_ptr<double>();
    for (size_t b = 0; b + 1 < eligible.cu_rows.size(); ++b) {
      const double steps = static_cast<double>(context.block_steps[b]);
      const double done = static_cast<double>(context.block_step[b]);
      const double t = 1.0 - done / steps, s = std::max(0.0, 1.0 - (done + 1.0) / steps);
      const double at_t = alpha(t), at_s = alpha(s);
      const bool last = context.block_step[b] + 1 >= context.block_steps[b];
      const int64_t begin = revealed.cu_rows[b], end = revealed.cu_rows[b + 1];
      const std::vector<double> sigma =
          last ? std::vector<double>(end - begin, 0.0)
               : remasking(t, at_t, at_s,
                           context.revealed_confidence.const_data_ptr<double>() + begin,
                           end - begin);
      const auto draw = [&](Stream stream, int64_t row) {
        return counter_uniform(context.seed, stream, context.sequence[b],
                               row - context.batch.cu_seqlens[b], context.step[b]);
      };
      for (int64_t i = begin; i < end; ++i) {
        if (draw(Stream::remask, shown[i]) < sigma[i - begin]) decision.remask.push_back(shown[i]);
      }
      // Masked rows share one sigma: that of revealed rows where it is the same for all, 0 for
      // conf, whose sigma belongs to revealed rows.
      const double shared = strategy_ == ReMDM::conf || last ? 0.0 : common(t, at_t, at_s);
      const double reveal =
          at_t < 1 ? std::clamp((at_s - (1.0 - shared) * at_t) / (1.0 - at_t), 0.0, 1.0) : 1.0;
      int64_t count = 0;
      for (int64_t i = eligible.cu_rows[b]; i < eligible.cu_rows[b + 1]; ++i) {
        const bool chosen = draw(Stream::order, masked[i]) < reveal;
        score[i] = chosen;
        count += chosen;
      }
      decision.count.push_back(count);
    }
    return decision;
  }

 private:
  double alpha(double t) const {
    if (strategy_ != ReMDM::loop) return 1.0 - t;
    if (t > on_) return (1.0 - t) * alpha_on_ / (1.0 - on_);
    return t > off_ ? alpha_on_ : 1.0 - t * (1.0 - alpha_on_) / off_;
  }

  static double most(double at_t, double at_s) {
    return at_t > 0 ? std::min(1.0, (1.0 - at_s) / at_t) : 1.0;
  }

  double common(double t, double at_t, double at_s) const {
    switch (strategy_) {
      case ReMDM::cap:
        return std::min(eta_, most(at_t, at_s));
      case ReMDM::rescale:
        return eta_ * most(at_t, at_s);
      case ReMDM::loop:
        return t <= on_ && t > off_ ? std::min(eta_, most(at_t, at_s)) : 0.0;
      case ReMDM::conf:
        break;
    }
    return 0.0;
  }

  // Of each of the n revealed rows, whose probabilities were c when they were revealed.
  std::vector<double> remasking(double t, double at_t, double at_s, const double* c,
                                int64_t n) const {
    if (strategy_ != ReMDM::conf) return std::vector<double>(n, common(t, at_t, at_s));
    std::vector<double> sigma(n);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += sigma[i] = std::exp(-c[i]);
    for (double& x : sigma) x *= most(at_t, at_s) / total;
    return sigma;
  }

  ReMDM strategy_;
  double eta_ = 0, on_ = 0, off_ = 0, alpha_on_ = 0;
};

}  // namespace

std::shared_ptr<const Policy> make_remdm(ReMDM strategy, const Settings& settings) {
  return std::make_shared<const Remasking>(strategy, settings);
}

}  // namespace tabes
