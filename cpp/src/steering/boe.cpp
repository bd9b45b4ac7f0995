#include "tabes/boe.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>

#include "batch/column.h"
#include "batch/rows.h"
#include "batch/select.h"
#include "messages.h"
#include "policies/settings.h"
#include "random/philox.h"
#include "steering/score.h"
#include "steering/surrogate.h"

namespace tabes {
namespace {

constexpr Name<ContextKind> kContexts[] = {{"exact", ContextKind::exact},
                                           {"frozen", ContextKind::frozen}};
constexpr Name<AdjointKind> kAdjoints[] = {{"active", AdjointKind::active},
                                           {"dense", AdjointKind::dense}};
constexpr Name<Prefilter> kPrefilters[] = {{"confidence", Prefilter::confidence},
                                           {"margin", Prefilter::margin}};
constexpr Name<ProbeRule> kProbeRules[] = {{"candidates", ProbeRule::candidates},
                                           {"least_entropic", ProbeRule::least_entropic},
                                           {"most_entropic", ProbeRule::most_entropic},
                                           {"random", ProbeRule::random},
                                           {"nearest", ProbeRule::nearest}};
constexpr Name<DraftKind> kDrafts[] = {{"token", DraftKind::token},
                                       {"expected", DraftKind::expected}};
constexpr Name<ScoreRule> kScoreRules[] = {{"product", ScoreRule::product},
                                           {"nats", ScoreRule::nats}};

template <typename Value, size_t n>
Value named(const Name<Value> (&names)[n], const char* what, const std::string& name) {
  const Value* known = find(names, name);
  if (!known) {
    refuse(what, " '", quotable(name), "' is unknown; known are ", listed(names_of(names)));
  }
  return *known;
}

// Shows every option to a SettingsReader or SettingsWriter.
template <typename Visitor, typename Options>
void visit(Visitor& v, Options& o) {
  v.count("n_candidates", o.n_candidates, o.per_quota);
  v.choice("prefilter", kPrefilters, o.prefilter);
  v.points("alpha", o.alpha);
  v.choice("draft", kDrafts, o.draft);
  v.number("tau", o.tau);
  v.choice("rule", kScoreRules, o.rule);
  v.number("gamma", o.gamma);
  v.number("weight", o.weight);
  v.number("factor", o.factor);
  v.number("spread", o.spread);
  v.number("spread_width", o.spread_width);
  v.number("anti_collapse", o.anti_collapse);
  v.number("h_max", o.h_max);
  v.choice("probes", kProbeRules, o.probes);
  v.number("rho", o.rho);
  v.whole("halo", o.halo);
  v.choice("context", kContexts, o.context);
  v.choice("adjoint", kAdjoints, o.adjoint);
  v.whole("every", o.every);
  v.whole("min_masked", o.min_masked);
}

}  // namespace

ContextKind context_kind(const std::string& name) {
  return named(kContexts, "context", name);
}

AdjointKind adjoint_kind(const std::string& name) {
  return named(kAdjoints, "adjoint", name);
}

BoEOptions BoEOptions::with(const PolicySettings& settings) const {
  BoEOptions options = *this;
  SettingsReader reader("boe", settings);
  visit(reader, options);
  reader.finish();
  return options;
}

PolicySettings BoEOptions::settings() const {
  SettingsWriter writer;
  visit(writer, *this);
  return writer.settings;
}

InfluenceOptions BoEOptions::influence() const {
  InfluenceOptions i;
  i.alpha = alpha;
  i.tau = tau;
  i.halo = halo;
  i.context = context;
  i.adjoint = adjoint;
  return i;
}

std::vector<double> minmax(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double base = *low, width = *high - *low;
  std::vector<double> scaled(values.size(), 1.0);
  if (width != 0) {
    std::transform(values.begin(), values.end(), scaled.begin(),
                   [&](double v) { return (v - base) / width; });
  }
  return scaled;
}

std::vector<double> boe_scores(const std::vector<double>& confidence,
                               const std::vector<double>& influence,
                               const std::vector<double>& entropy, const ScoreWeights& weights) {
  std::vector<double> score = minmax(influence);
  for (size_t i = 0; i < score.size(); ++i) {
    const double below = std::max(0.0, weights.floor - entropy[i]);
    const double first = weights.weight < 0
                             ? std::pow(confidence[i], weights.gamma) * score[i]
                             : weights.gamma * std::log(std::max(confidence[i], 1e-300)) +
                                   weights.weight * influence[i];
    score[i] = first - weights.anti_collapse * below * below;
  }
  return score;
}

BoEOptions BoEOptions::paper() {
  BoEOptions o;
  o.n_candidates = 3;
  o.per_quota = false;
  o.alpha = {1.0};
  o.tau = 0.5;
  o.gamma = 1.0;
  o.anti_collapse = 0.2;
  o.h_max = 0.3;
  o.rho = 0.25;
  o.probes = ProbeRule::most_entropic;
  o.draft = DraftKind::expected;
  o.rule = ScoreRule::product;
  o.factor = 0.0;
  o.spread = 0.0;
  o.context = ContextKind::exact;
  return o;
}

BoE::BoE(BoEOptions options) : options_(std::move(options)) {
  const BoEOptions& o = options_;
  check(o.influence());
  const auto require = [](bool ok, const char* what, double value) {
    if (!ok) refuse("BoE: ", what, ", not ", value);
  };
  require(std::isfinite(o.n_candidates) && o.n_candidates >= 1, "n_candidates must be at least 1",
          o.n_candidates);
  require(o.per_quota || o.n_candidates == std::floor(o.n_candidates),
          "n_candidates as a number of rows must be whole", o.n_candidates);
  // Up to these scores stay far from where float64 loses their differences.
  const auto within = [](double value, double least, double most) {
    return value >= least && value <= most;
  };
  require(within(o.gamma, 0, 1e9), "gamma must be from 0 to 1e9", o.gamma);
  require(within(o.weight, 0, 1e9), "weight must be from 0 to 1e9", o.weight);
  require(within(o.spread, 0, 1e9), "spread must be from 0 to 1e9", o.spread);
  require(within(o.spread_width, 1e-6, 1e9), "spread_width must be from 1e-6 to 1e9",
          o.spread_width);
  require(within(o.factor, 0, 1e9), "factor must be from 0 (the quota) to 1e9", o.factor);
  require(within(o.anti_collapse, 0, 1e6), "anti_collapse must be from 0 to 1e6", o.anti_collapse);
  require(within(o.h_max, 0, 1e3), "h_max must be from 0 to 1000", o.h_max);
  require(o.rho > 0 && o.rho <= 1, "rho must be above 0 and at most 1", o.rho);
  require(o.every >= 1, "every must be at least 1", static_cast<double>(o.every));
  require(o.min_masked >= 0, "min_masked must be 0 or above", static_cast<double>(o.min_masked));
}

bool BoE::wants_context(const std::vector<int64_t>& step) const {
  return options_.context == ContextKind::frozen && options_.uses_influence() &&
         std::any_of(step.begin(), step.end(), [&](int64_t s) { return s % options_.every == 0; });
}

namespace {

// What the policy sees, on the host.
struct Step {
  Step(const StepContext& given, const BoEOptions& o)
      : context(given),
        confidence(given.predictions.confidence),
        entropy(given.predictions.entropy),
        filter(o.prefilter == Prefilter::margin ? given.predictions.margin
                                                : given.predictions.confidence),
        waiting_entropy(given.waiting.count() > 0 ? given.waiting_entropy : at::zeros({0})),
        rows(given.eligible.on_host()),
        waiting_rows(given.waiting.on_host()) {}

  int64_t row(int64_t i) const { return rows.const_data_ptr<int64_t>()[i]; }
  int64_t waiting_row(int64_t i) const { return waiting_rows.const_data_ptr<int64_t>()[i]; }

  const StepContext& context;
  Column confidence, entropy, filter, waiting_entropy;
  at::Tensor rows, waiting_rows;
};

// Candidates of every sequence, as numbers among the eligible rows, and probes, as rows.
struct Sets {
  std::vector<int64_t> candidates, probes, cu_candidates{0}, cu_probes{0};
  std::vector<double> entropy;  // of each sequence's probes together, in nats
};

// What a step does with one sequence.
struct Share {
  int64_t reveals = 0;
  std::vector<int64_t> sure;        // taken by their confidence alone; numbers, increasing
  std::vector<int64_t> candidates;  // from which the rest is chosen; empty if there is no choice
  bool steered = false;             // by influence
};

// How early a row becomes a probe beside the candidates `chosen` of sequence b.
double probe_rank(const Step& step, ProbeRule rule, size_t b, const std::vector<int64_t>& chosen,
                  int64_t row, double entropy) {
  const StepContext& c = step.context;
  switch (rule) {
    case ProbeRule::candidates:
      break;
    case ProbeRule::least_entropic:
      return -entropy;
    case ProbeRule::most_entropic:
      return entropy;
    case ProbeRule::random:
      return counter_uniform(c.seed, Stream::probe, c.sequence[b], row - c.batch.cu_seqlens[b],
                             c.step[b]);
    case ProbeRule::nearest: {
      int64_t distance = std::numeric_limits<int64_t>::max();
      for (const int64_t other : chosen) {
        distance = std::min(distance, std::abs(row - step.row(other)));
      }
      return -static_cast<double>(distance);
    }
  }
  TORCH_INTERNAL_ASSERT(false, "no rule that ranks rows");
}

// Adds the probes beside the candidates `chosen` of sequence b.
void add_probes(const Step& step, const BoEOptions& o, size_t b, const std::vector<int64_t>& chosen,
                Sets& sets) {
  double& sum = sets.entropy.back();
  if (o.probes == ProbeRule::candidates) {
    for (const int64_t i : chosen) {
      sets.probes.push_back(step.row(i));
      sum += step.entropy[i];
    }
    return;
  }
  const StepContext& c = step.context;
  std::vector<int64_t> rest;
  std::vector<double> order, entropies;
  const auto add = [&](int64_t row, double entropy) {
    rest.push_back(row);
    entropies.push_back(entropy);
    order.push_back(probe_rank(step, o.probes, b, chosen, row, entropy));
  };
  for (int64_t i = c.eligible.cu_rows[b]; i < c.eligible.cu_rows[b + 1]; ++i) {
    if (!std::binary_search(chosen.begin(), chosen.end(), i)) add(step.row(i), step.entropy[i]);
  }
  for (int64_t i = c.waiting.cu_rows[b]; i < c.waiting.cu_rows[b + 1]; ++i) {
    add(step.waiting_row(i), step.waiting_entropy[i]);
  }
  const int64_t length = c.batch.cu_seqlens[b + 1] - c.batch.cu_seqlens[b];
  const auto most = static_cast<int64_t>(std::ceil(o.rho * static_cast<double>(length)));
  for (const int64_t i : largest(order.data(), 0, static_cast<int64_t>(rest.size()), most)) {
    sets.probes.push_back(rest[i]);
    sum += entropies[i];
  }
}

// The rows of sequence b that its confidences alone decide on.
std::vector<int64_t> accepted(const Step& step, double factor, size_t b) {
  if (factor == 0) return {};
  const auto& cu = step.context.eligible.cu_rows;
  std::vector<double> c(step.confidence.data() + cu[b], step.confidence.data() + cu[b + 1]);
  std::sort(c.begin(), c.end(), std::greater<>());
  return largest(step.confidence.data(), cu[b], cu[b + 1], within_factor(c, factor));
}

Share share_of(const Step& step, const BoEOptions& o, size_t b) {
  const StepContext& c = step.context;
  const int64_t begin = c.eligible.cu_rows[b], end = c.eligible.cu_rows[b + 1];
  Share share;
  share.sure = accepted(step, o.factor, b);
  const auto sure = static_cast<int64_t>(share.sure.size());
  share.reveals = std::max(sure, c.quota[b]);
  const double asked =
      o.per_quota ? std::ceil(o.n_candidates * static_cast<double>(share.reveals)) : o.n_candidates;
  const auto r = static_cast<int64_t>(std::min(asked, static_cast<double>(end - begin)));
  if (r <= share.reveals || share.reveals <= sure) return share;
  const int64_t waiting = c.waiting.cu_rows[b + 1] - c.waiting.cu_rows[b];
  const bool probed = o.probes == ProbeRule::candidates || r < end - begin + waiting;
  share.candidates = largest(step.filter.data(), begin, end, r);
  share.steered =
      c.step[b] % o.every == 0 && end - begin >= o.min_masked && probed && o.uses_influence();
  return share;
}

// Takes from the scores of a sequence's candidates what those picked before them cost.
void spread_out(const Step& step, const BoEOptions& o, const Share& share,
                std::vector<double>& scores) {
  const auto near = [&](int64_t i, int64_t k) {
    const auto distance = static_cast<double>(std::abs(step.row(i) - step.row(k)));
    return o.spread * std::exp(-distance / o.spread_width);
  };
  const std::vector<int64_t>& own = share.candidates;
  std::vector<char> picked;
  for (const int64_t i : own) {
    picked.push_back(std::binary_search(share.sure.begin(), share.sure.end(), i));
  }
  const auto pick = [&](int64_t i) {
    for (size_t k = 0; k < own.size(); ++k) {
      if (!picked[k]) scores[k] -= near(i, own[k]);
    }
  };
  for (const int64_t i : share.sure) pick(i);
  for (auto left = share.reveals - static_cast<int64_t>(share.sure.size()); left > 0; --left) {
    size_t best = own.size();
    for (size_t k = 0; k < own.size(); ++k) {
      if (!picked[k] && (best == own.size() || scores[k] > scores[best])) best = k;
    }
    if (best == own.size()) return;
    picked[best] = 1;
    pick(own[best]);
  }
}

// Computes the candidates' influences.
void steer(const Step& step, const BoEOptions& o, const Sets& sets, Decision& result) {
  const StepContext& context = step.context;
  InfluenceOptions options = o.influence();
  // A model without frozen contexts is steered all the same, at the exact one's cost.
  if (!context.context) options.context = ContextKind::exact;
  options.poll = context.poll;
  const at::Device device = context.model.info().device;
  std::vector<int64_t> candidate_rows;
  for (const int64_t i : sets.candidates) candidate_rows.push_back(step.row(i));
  const RowSet candidates = row_set(candidate_rows, sets.cu_candidates, device);
  const RowSet probes =
      o.probes == ProbeRule::candidates ? candidates : row_set(sets.probes, sets.cu_probes, device);
  SurrogateRequest request{context.batch,     candidates, probes,         {}, {},
                           context.forbidden, options,    context.context};
  request.disjoint = o.probes != ProbeRule::candidates;
  const at::Tensor chosen = to_tensor(sets.candidates, context.features.device());
  if (o.draft == DraftKind::token) {
    request.tokens = context.predictions.token.index_select(0, chosen);
  } else {
    request.features = context.features.index_select(0, chosen);
  }
  const SurrogateScores surrogate = surrogate_scores(context.model, request);
  result.influence =
      at::full({context.eligible.count()}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  result.probes = sets.probes;
  double* influence = result.influence.data_ptr<double>();
  const Column tis(surrogate.tis), drafted(surrogate.entropy);
  for (size_t b = 0; b + 1 < sets.cu_candidates.size(); ++b) {
    double rising = 0;
    const auto check = [&](double value, int64_t row, const char* what) {
      if (std::isfinite(value)) return;
      throw NumericsError(text("step ", context.step[b], ", sequence ", context.place[b],
                               ", position ", row - context.batch.cu_seqlens[b], ": ", what,
                               " is not a number; check the checkpoint and try dtype float32"));
    };
    for (int64_t k = sets.cu_probes[b]; k < sets.cu_probes[b + 1]; ++k) {
      check(drafted[k], sets.probes[k], "the entropy with the candidates drafted");
    }
    for (int64_t k = sets.cu_candidates[b]; k < sets.cu_candidates[b + 1]; ++k) {
      const int64_t i = sets.candidates[k];
      check(tis[k], step.row(i), "the influence");
      influence[i] = tis[k];
      rising += std::max(0.0, tis[k]);
    }
    // The paper's product knows no nats: only how influences compare.
    if (o.rule == ScoreRule::product) continue;
    const double scale = influence_scale(sets.entropy[b], rising);
    for (int64_t k = sets.cu_candidates[b]; k < sets.cu_candidates[b + 1]; ++k) {
      influence[sets.candidates[k]] *= scale;
    }
  }
}

// Turns the confidences in `score` of a sequence b whose rows are chosen into BoE's scores.
void rank(const Step& step, const BoEOptions& o, size_t b, const Share& share,
          const double* influence, double* score) {
  const StepContext& context = step.context;
  std::vector<double> c, t, h;
  for (const int64_t i : share.candidates) {
    c.push_back(step.confidence[i]);
    t.push_back(share.steered ? influence[i] : 0.0);
    h.push_back(step.entropy[i]);
  }
  const double left = static_cast<double>(context.steps[b] - context.step[b]) /
                      static_cast<double>(context.steps[b]);
  std::vector<double> scores = boe_scores(
      c, t, h,
      {o.gamma, o.anti_collapse, o.h_max * left, o.rule == ScoreRule::nats ? o.weight : -1.0});
  if (o.spread > 0) spread_out(step, o, share, scores);
  // Every other row comes after the last candidate; confidences are at most 1.
  const auto [low, high] = std::minmax_element(scores.begin(), scores.end());
  const double below = *low - 2.0, above = *high + 1.0;
  for (int64_t i = context.eligible.cu_rows[b]; i < context.eligible.cu_rows[b + 1]; ++i) {
    score[i] += below;
  }
  for (size_t k = 0; k < scores.size(); ++k) score[share.candidates[k]] = scores[k];
  for (const int64_t i : share.sure) score[i] = above + step.confidence[i];
}

}  // namespace

Decision BoE::decide(const StepContext& context) const {
  const BoEOptions& o = options_;
  const Step step(context, o);
  const auto& cu = context.eligible.cu_rows;
  std::vector<Share> shares;
  Sets sets;
  Decision result(step.confidence.held.clone());
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    shares.push_back(share_of(step, o, b));
    const Share& share = shares.back();
    sets.entropy.push_back(0.0);
    if (share.steered) {
      add_probes(step, o, b, share.candidates, sets);
      sets.candidates.insert(sets.candidates.end(), share.candidates.begin(),
                             share.candidates.end());
    }
    sets.cu_candidates.push_back(static_cast<int64_t>(sets.candidates.size()));
    sets.cu_probes.push_back(static_cast<int64_t>(sets.probes.size()));
    if (o.factor > 0) result.count.push_back(share.reveals);
  }
  if (!sets.candidates.empty()) steer(step, o, sets, result);
  const double* influence =
      sets.candidates.empty() ? nullptr : result.influence.const_data_ptr<double>();
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    const Share& share = shares[b];
    if (share.candidates.empty() || !(share.steered || o.spread > 0)) continue;
    rank(step, o, b, share, influence, result.score.data_ptr<double>());
  }
  return result;
}

}  // namespace tabes
