// KLASS: reveals what is confident and has stopped changing.
#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "batch/rows.h"
#include "plain_dispatch.h"
#include "policies/kinds.h"

namespace tabes {
namespace {

// What is remembered of one sequence: the log-probabilities of its rows in the last step, and how
// many steps in a row each has changed little.
struct Memory {
  std::vector<int64_t> positions;  // increasing
  std::vector<int64_t> stable;
  at::Tensor log_p;  // [positions, V]
};

struct Memories final : PolicyState {
  std::unordered_map<int64_t, Memory> of;  // by place
};

class Klass final : public NamedPolicy {
 public:
  explicit Klass(const Settings& s)
      : NamedPolicy(s), tau_(s["tau"]), epsilon_(s["epsilon"]), history_(s.whole("history")) {}
  Pace pace() const override { return Pace::adaptive; }
  std::unique_ptr<PolicyState> begin() const override { return std::make_unique<Memories>(); }

  Decision decide(const StepContext& context) const override {
    const PlainDispatch plain;
    auto& memories = static_cast<Memories*>(context.states.of(*this))->of;
    const Column confidence(context.predictions.confidence);
    const at::Tensor rows = context.eligible.rows.to(at::kCPU);
    Decision decision(confidence.held.clone());
    double* score = decision.score.data_ptr<double>();
    const auto& cu = context.eligible.cu_rows;
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      const int64_t n = cu[b + 1] - cu[b];
      Memory now{{}, std::vector<int64_t>(n, 0), distributions(context, cu[b], n)};
      for (int64_t i = cu[b]; i < cu[b + 1]; ++i) {
        now.positions.push_back(rows.const_data_ptr<int64_t>()[i] - context.batch.cu_seqlens[b]);
      }
      Memory& before = memories[context.place[b]];
      compare(before, now);
      int64_t ready = 0;
      for (int64_t i = 0; i < n; ++i) {
        if (now.stable[i] < history_ || !(confidence[cu[b] + i] > tau_)) continue;
        score[cu[b] + i] += 1.0;  // before all others, whose confidences are at most 1
        ++ready;
      }
      decision.count.push_back(ready > 0 ? ready : context.quota[b]);
      before = std::move(now);
    }
    return decision;
  }

 private:
  at::Tensor distributions(const StepContext& context, int64_t from, int64_t count) const {
    at::Tensor logits = context.model.project(context.features.narrow(0, from, count)).contiguous();
    logits.index_fill_(1, context.forbidden, -std::numeric_limits<double>::infinity());
    const auto real = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return at::log_softmax(logits, 1, real);
  }

  // Counts on for rows whose KL(now || before) is below epsilon.
  void compare(const Memory& before, Memory& now) const {
    std::vector<int64_t> old_rows, new_rows;
    for (size_t i = 0; i < now.positions.size(); ++i) {
      const auto at =
          std::lower_bound(before.positions.begin(), before.positions.end(), now.positions[i]);
      if (at == before.positions.end() || *at != now.positions[i]) continue;
      old_rows.push_back(at - before.positions.begin());
      new_rows.push_back(static_cast<int64_t>(i));
    }
    if (new_rows.empty()) return;
    const at::Device device = now.log_p.device();
    const at::Tensor p = now.log_p.index_select(0, to_tensor(new_rows, device));
    const at::Tensor q = before.log_p.index_select(0, to_tensor(old_rows, device));
    // Tokens of probability 0 add nothing, though their difference is not a number.
    const Column kl(((p - q) * p.exp()).nan_to_num(0.0).sum(1));
    for (size_t i = 0; i < new_rows.size(); ++i) {
      if (kl[static_cast<int64_t>(i)] < epsilon_) {
        now.stable[new_rows[i]] = before.stable[old_rows[i]] + 1;
      }
    }
  }

  double tau_, epsilon_;
  int64_t history_;
};

}  // namespace

std::shared_ptr<const Policy> make_klass(const Settings& s) {
  return std::make_shared<const Klass>(s);
}

}  // namespace tabes
