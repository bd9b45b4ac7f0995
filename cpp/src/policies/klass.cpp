// KLASS: reveals what is confident and has stopped changing.
#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>
#include <unordered_map>

#include "batch/forbidden.h"
#include "batch/pieces.h"
#include "batch/rows.h"
#include "plain_dispatch.h"
#include "policies/kinds.h"

namespace tabes {
namespace {

// What is remembered of one sequence: the features of its rows in the last step, and how many steps
// in a row each row's distribution has changed little. The distributions themselves would be V
// numbers a row; they are computed again, some rows at a time.
struct Memory {
  std::vector<int64_t> positions;  // increasing
  std::vector<int64_t> stable;
  at::Tensor features;  // [positions, F]
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
    const at::Tensor rows = context.eligible.on_host();
    Decision decision(confidence.held.clone());
    double* score = decision.score.data_ptr<double>();
    const auto& cu = context.eligible.cu_rows;
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      const int64_t n = cu[b + 1] - cu[b];
      Memory now{{}, std::vector<int64_t>(n, 0), context.features.narrow(0, cu[b], n)};
      for (int64_t i = cu[b]; i < cu[b + 1]; ++i) {
        now.positions.push_back(rows.const_data_ptr<int64_t>()[i] - context.batch.cu_seqlens[b]);
      }
      Memory& before = memories[context.place[b]];
      compare(context, before, now);
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
  static at::Tensor distributions(const StepContext& context, const at::Tensor& features) {
    at::Tensor logits = context.model.project(features).contiguous();
    forbid(logits, context.forbidden);
    const auto real = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return at::log_softmax(logits, 1, real);
  }

  // Counts on for rows whose KL(now || before) is below epsilon.
  void compare(const StepContext& context, const Memory& before, Memory& now) const {
    std::vector<int64_t> old_rows, new_rows;
    for (size_t i = 0; i < now.positions.size(); ++i) {
      const auto at =
          std::lower_bound(before.positions.begin(), before.positions.end(), now.positions[i]);
      if (at == before.positions.end() || *at != now.positions[i]) continue;
      old_rows.push_back(at - before.positions.begin());
      new_rows.push_back(static_cast<int64_t>(i));
    }
    const at::Device device = now.features.device();
    const at::Tensor old_at = to_tensor(old_rows, device), new_at = to_tensor(new_rows, device);
    const auto n = static_cast<int64_t>(new_rows.size());
    // Two distributions and what becomes of them.
    const int64_t piece = logits_at_once(4 * context.model.info().vocab_size, sizeof(float));
    for (int64_t from = 0; from < n; from += piece) {
      const int64_t count = std::min(piece, n - from);
      const auto some = [&](const at::Tensor& features, const at::Tensor& at) {
        return distributions(context, features.index_select(0, at.narrow(0, from, count)));
      };
      const at::Tensor p = some(now.features, new_at), q = some(before.features, old_at);
      // Tokens of probability 0 add nothing, though their difference is not a number.
      const Column kl(q.neg_().add_(p).mul_(p.exp()).nan_to_num_(0.0).sum(1));
      for (int64_t i = 0; i < count; ++i) {
        if (!(kl[i] < epsilon_)) continue;
        now.stable[new_rows[from + i]] = before.stable[old_rows[from + i]] + 1;
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
