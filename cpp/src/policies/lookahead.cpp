// Policies that run the model on what they might reveal before they choose.
#include <algorithm>
#include <cmath>
#include <iterator>

#include "batch/select.h"
#include "policies/kinds.h"
#include "random/philox.h"
#include "steering/score.h"

namespace tabes {
namespace {

double gumbel(double uniform) {
  return -std::log(-std::log(uniform));
}

// Proposes sets of rows for every sequence, looks ahead at all of them, chooses one.
class SetChooser : public NamedPolicy {
 public:
  using NamedPolicy::NamedPolicy;
  Decision decide(const StepContext& context) const override {
    const Column confidence(context.predictions.confidence), entropy(context.predictions.entropy);
    Decision decision(confidence.held.clone());
    const auto& cu = context.eligible.cu_rows;
    std::vector<Ahead> wanted;
    std::vector<size_t> first{0};
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      const int64_t count = decision_count(context, confidence, b);
      if (pace() == Pace::adaptive) decision.count.push_back(count);
      if (count < cu[b + 1] - cu[b]) {
        for (auto& rows : propose(context, confidence, b, count)) {
          const auto same = [&](const Ahead& a) { return a.reveal == rows; };
          if (std::none_of(wanted.begin() + first[b], wanted.end(), same)) {
            wanted.push_back({b, std::move(rows)});
          }
        }
      }
      first.push_back(wanted.size());
    }
    const std::vector<Predictions> seen = context.look_ahead(wanted);
    double* score = decision.score.data_ptr<double>();
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      std::vector<double> values;
      for (size_t k = first[b]; k < first[b + 1]; ++k) {
        double own = 0, left = 0;
        for (const int64_t row : wanted[k].reveal) own += entropy[row];
        const Column after(seen[k].entropy);
        for (int64_t i = 0; i < after.held.numel(); ++i) left += after[i];
        values.push_back(value(own, left / static_cast<double>(after.held.numel())));
      }
      if (values.empty()) continue;
      // Before all other rows, whose confidences are at most 1.
      for (const int64_t row : wanted[first[b] + choose(context, b, values)].reveal) {
        score[row] += 1.0;
      }
    }
    return decision;
  }

 private:
  virtual int64_t decision_count(const StepContext& context, const Column&, size_t b) const {
    return context.quota[b];
  }
  // Sets of `count` eligible rows of sequence b, each increasing.
  virtual std::vector<std::vector<int64_t>> propose(const StepContext& context,
                                                    const Column& confidence, size_t b,
                                                    int64_t count) const = 0;
  // Of a set with summed entropy `own` that leaves a mean entropy of `left`.
  virtual double value(double own, double left) const = 0;
  virtual size_t choose(const StepContext& context, size_t b,
                        const std::vector<double>& values) const = 0;
};

class InfoGain final : public SetChooser {
 public:
  explicit InfoGain(const Settings& s)
      : SetChooser(s),
        candidates_(s.whole("candidates")),
        temperature_(s["position_temperature"]),
        threshold_(s["threshold"]) {}
  bool at_least_quota() const override { return true; }
  Pace pace() const override { return Pace::adaptive; }

 private:
  int64_t decision_count(const StepContext& context, const Column& confidence,
                         size_t b) const override {
    const auto begin = context.eligible.cu_rows[b], end = context.eligible.cu_rows[b + 1];
    const bool sure = std::all_of(confidence.data() + begin, confidence.data() + end,
                                  [&](double c) { return c >= threshold_; });
    return sure ? end - begin : context.quota[b];
  }

  std::vector<std::vector<int64_t>> propose(const StepContext& context, const Column& confidence,
                                            size_t b, int64_t count) const override {
    const auto begin = context.eligible.cu_rows[b], end = context.eligible.cu_rows[b + 1];
    std::vector<std::vector<int64_t>> sets{largest(confidence.data(), begin, end, count)};
    const at::Tensor rows = context.eligible.on_host();
    std::vector<double> noisy(end);
    for (int64_t k = 1; k < candidates_; ++k) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t position = rows.const_data_ptr<int64_t>()[i] - context.batch.cu_seqlens[b];
        const double u = counter_uniform(context.seed, Stream::proposal, context.sequence[b],
                                         position, context.step[b] * candidates_ + k);
        noisy[i] = confidence[i] / temperature_ + gumbel(u);
      }
      sets.push_back(largest(noisy.data(), begin, end, count));
    }
    return sets;
  }

  double value(double own, double left) const override { return -own - left; }

  size_t choose(const StepContext&, size_t, const std::vector<double>& values) const override {
    return std::max_element(values.begin(), values.end()) - values.begin();
  }

  int64_t candidates_;
  double temperature_, threshold_;
};

// The pool is our reading of "sets of high certainty": the most certain rows but for the last, with
// each of the next `pool` rows in its place.
class LookUM final : public SetChooser {
 public:
  explicit LookUM(const Settings& s)
      : SetChooser(s), pool_(s.whole("pool")), paths_(s.whole("paths")) {}

 private:
  std::vector<std::vector<int64_t>> propose(const StepContext& context, const Column& confidence,
                                            size_t b, int64_t count) const override {
    const auto begin = context.eligible.cu_rows[b], end = context.eligible.cu_rows[b + 1];
    const auto top = [&](int64_t n) { return largest(confidence.data(), begin, end, n); };
    const std::vector<int64_t> base = top(count - 1);
    std::vector<std::vector<int64_t>> pool;
    std::vector<double> lot;
    std::vector<int64_t> before = base;
    for (int64_t k = 0; k < std::min(pool_, end - begin - count + 1); ++k) {
      std::vector<int64_t> with = top(count + k), added, set;
      std::set_difference(with.begin(), with.end(), before.begin(), before.end(),
                          std::back_inserter(added));
      std::merge(base.begin(), base.end(), added.begin(), added.end(), std::back_inserter(set));
      pool.push_back(std::move(set));
      lot.push_back(
          counter_uniform(context.seed, Stream::proposal, context.sequence[b], k, context.step[b]));
      before = std::move(with);
    }
    std::vector<std::vector<int64_t>> drawn;
    for (const int64_t k : largest(lot.data(), 0, static_cast<int64_t>(lot.size()), paths_)) {
      drawn.push_back(pool[k]);
    }
    return drawn;
  }

  double value(double, double left) const override { return -left; }

  // Normalised importance sampling: a path is kept with probability in proportion to exp(value).
  size_t choose(const StepContext& context, size_t b,
                const std::vector<double>& values) const override {
    std::vector<double> noisy;
    for (size_t k = 0; k < values.size(); ++k) {
      const double u = counter_uniform(context.seed, Stream::path, context.sequence[b],
                                       static_cast<int64_t>(k), context.step[b]);
      noisy.push_back(values[k] + gumbel(u));
    }
    return std::max_element(noisy.begin(), noisy.end()) - noisy.begin();
  }

  int64_t pool_, paths_;
};

// BoE's score with the true fall of entropy in place of its gradient.
class Oracle final : public NamedPolicy {
 public:
  explicit Oracle(const Settings& s)
      : NamedPolicy(s), candidates_(s["candidates"]), gamma_(s["gamma"]) {}

  Decision decide(const StepContext& context) const override {
    const Column confidence(context.predictions.confidence), entropy(context.predictions.entropy);
    const auto& cu = context.eligible.cu_rows;
    std::vector<Ahead> wanted;
    std::vector<size_t> first{0};
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      const auto r =
          static_cast<int64_t>(std::ceil(candidates_ * static_cast<double>(context.quota[b])));
      if (r > context.quota[b] && r < cu[b + 1] - cu[b]) {
        for (const int64_t i : largest(confidence.data(), cu[b], cu[b + 1], r)) {
          wanted.push_back({b, {i}});
        }
      }
      first.push_back(wanted.size());
    }
    const std::vector<Predictions> seen = context.look_ahead(wanted);
    Decision decision(confidence.held.clone());
    double* score = decision.score.data_ptr<double>();
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      std::vector<int64_t> own;
      for (size_t k = first[b]; k < first[b + 1]; ++k) own.push_back(wanted[k].reveal[0]);
      if (own.empty()) continue;
      const auto is_candidate = [&](int64_t i) {
        return std::binary_search(own.begin(), own.end(), i);
      };
      std::vector<double> c, h, fall;
      for (size_t k = first[b]; k < first[b + 1]; ++k) {
        const int64_t revealed = wanted[k].reveal[0];
        const Column after(seen[k].entropy);
        double nats = 0;
        for (int64_t i = cu[b], left = 0; i < cu[b + 1]; ++i) {
          if (i == revealed) continue;
          if (!is_candidate(i)) nats += entropy[i] - after[left];
          ++left;
        }
        c.push_back(confidence[revealed]);
        h.push_back(entropy[revealed]);
        fall.push_back(nats);
      }
      const std::vector<double> scores = boe_scores(c, fall, h, {gamma_, 0.0, 0.0});
      // Before all other rows, whose confidences are at most 1.
      for (size_t k = 0; k < own.size(); ++k) score[own[k]] = 2.0 + scores[k];
    }
    return decision;
  }

 private:
  double candidates_, gamma_;
};

}  // namespace

std::shared_ptr<const Policy> make_info_gain(const Settings& s) {
  return std::make_shared<const InfoGain>(s);
}

std::shared_ptr<const Policy> make_lookum(const Settings& s) {
  return std::make_shared<const LookUM>(s);
}

std::shared_ptr<const Policy> make_oracle(const Settings& s) {
  return std::make_shared<const Oracle>(s);
}

}  // namespace tabes
