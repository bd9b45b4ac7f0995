#include <ATen/ops/empty.h>

#include <array>

#include "messages.h"
#include "random/philox.h"
#include "tabes/boe.h"
#include "tabes/policy.h"

namespace tabes {
namespace {

class Confidence final : public Policy {
 public:
  std::string name() const override { return "confidence"; }
  Scores score(const StepContext& context) const override { return context.predictions.confidence; }
};

class Margin final : public Policy {
 public:
  std::string name() const override { return "margin"; }
  Scores score(const StepContext& context) const override { return context.predictions.margin; }
};

class Entropy final : public Policy {
 public:
  std::string name() const override { return "entropy"; }
  Scores score(const StepContext& context) const override {
    return context.predictions.entropy.neg();
  }
};

// A score per (seed, sequence, position, step), so that the order of one sequence does not depend
// on what else is in the batch.
class Random final : public Policy {
 public:
  std::string name() const override { return "random"; }
  Scores score(const StepContext& context) const override {
    const RowSet& eligible = context.eligible;
    at::Tensor score = at::empty({eligible.count()}, at::kDouble);
    const at::Tensor rows = eligible.rows.to(at::kCPU);
    const int64_t* row = rows.const_data_ptr<int64_t>();
    double* out = score.data_ptr<double>();
    for (size_t b = 0; b + 1 < eligible.cu_rows.size(); ++b) {
      for (int64_t i = eligible.cu_rows[b]; i < eligible.cu_rows[b + 1]; ++i) {
        out[i] = counter_uniform(context.seed, Stream::order, context.sequence[b],
                                 row[i] - context.batch.cu_seqlens[b], context.step[b]);
      }
    }
    return score;
  }
};

std::shared_ptr<const Policy> boe() {
  return std::make_shared<const BoE>();
}
std::shared_ptr<const Policy> boe_paper() {
  return std::make_shared<const BoE>(BoEOptions::paper());
}

struct Named {
  const char* name;
  std::shared_ptr<const Policy> (*make)();
};

template <typename P>
std::shared_ptr<const Policy> make() {
  return std::make_shared<const P>();
}

constexpr std::array kPolicies{Named{"random", make<Random>},
                               Named{"confidence", make<Confidence>},
                               Named{"margin", make<Margin>},
                               Named{"entropy", make<Entropy>},
                               Named{"boe", boe},
                               Named{"boe_paper", boe_paper}};

}  // namespace

std::shared_ptr<const Policy> make_policy(const std::string& name) {
  for (const Named& p : kPolicies) {
    if (name == p.name) return p.make();
  }
  std::string known;
  for (const Named& p : kPolicies) known += text(' ', p.name);
  refuse("policy '", name, "' is unknown; known are", known);
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const Named& p : kPolicies) names.emplace_back(p.name);
  return names;
}

}  // namespace tabes
