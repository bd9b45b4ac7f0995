#include "tabes/generate.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "batch/rows.h"
#include "batch/select.h"
#include "decode/predict.h"
#include "decode/schedule.h"
#include "messages.h"
#include "plain_dispatch.h"
#include "random/philox.h"

namespace tabes {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void require(bool ok, const std::string& message) {
  if (!ok) throw InputError(message);
}

void check(const GenerateOptions& o, const ModelInfo& info, size_t batch) {
  require(o.steps >= 1, text("steps must be at least 1, not ", o.steps));
  require(!o.block_length || *o.block_length >= 1,
          text("block_length must be at least 1, not ", o.block_length.value_or(0)));
  require(std::isfinite(o.temperature) && o.temperature >= 0,
          text("temperature must be 0 (take the likeliest token) or above, not ", o.temperature));
  require(o.top_p > 0 && o.top_p <= 1, text("top_p must be in (0, 1], not ", o.top_p));
  require(o.top_k >= 0, text("top_k must be 0 (no cut) or above, not ", o.top_k));
  require(std::isfinite(o.cfg_scale) && o.cfg_scale >= 0,
          text("cfg_scale must be 0 (off) or above, not ", o.cfg_scale));
  for (int64_t id : o.forbidden) {
    require(id >= 0 && id < info.vocab_size,
            text("forbidden token ", id, " is outside the vocabulary of ", info.vocab_size));
  }
  require(o.sequence_ids.empty() || o.sequence_ids.size() == batch,
          text("sequence_ids has ", o.sequence_ids.size(), " entries for ", batch, " sequences"));
}

// The mask, the caller's, and with logits_eos_inf the ends of text: sorted, without repeats.
std::vector<int64_t> all_forbidden(const GenerateOptions& options, const ModelInfo& info) {
  std::vector<int64_t> ids = options.forbidden;
  ids.push_back(info.mask_token_id);
  if (options.logits_eos_inf) {
    ids.insert(ids.end(), info.eos_token_ids.begin(), info.eos_token_ids.end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  require(static_cast<int64_t>(ids.size()) < info.vocab_size,
          "every token is forbidden; leave at least one to write");
  return ids;
}

// What a steered step expected of one sequence, to be compared with the next step.
struct Expectation {
  std::vector<int64_t> positions;  // of its probes
  std::vector<double> entropy;     // of each, in nats
};

// One sequence on its way from masks to tokens.
struct Canvas {
  HostTokens tokens;
  HostTokens unguided;  // the given tokens masked; kept only under guidance
  Schedule schedule;
  int64_t id;        // keys its random draws
  int64_t step = 0;  // its own count
  Expectation expected = {};
};

// Columns of one step over the eligible rows, on the host.
struct HostPredictions {
  at::Tensor token, confidence, entropy, score;
  at::Tensor influence, probes;  // undefined: the policy does not look ahead
};

class Loop {
 public:
  Loop(const Denoiser& model, const std::vector<at::Tensor>& sequences,
       const GenerateOptions& options);
  GenerateResult run();

 private:
  // Decides and writes one step of every unfinished sequence.
  StepRecord step(int64_t number, StepRecord* before);
  HostPredictions look(int64_t number, const std::vector<Canvas*>& live, const RowSet& eligible,
                       const PackedBatch& batch, StepRecord& record) const;
  // Completes the record of the step before with what has become of its probes.
  void realise(const std::vector<Canvas*>& live, const std::vector<int64_t>& positions,
               const RowSet& eligible, const HostPredictions& seen, StepRecord& before) const;
  // Writes the best rows of `live` and records them; `positions` are those of the eligible rows.
  void reveal(const std::vector<Canvas*>& live, const std::vector<int64_t>& positions,
              const RowSet& eligible, const HostPredictions& seen, StepRecord& record);
  void check_finite(int64_t number, const std::vector<Canvas*>& live, const RowSet& eligible,
                    const std::vector<int64_t>& cu_seqlens, const at::Tensor& values,
                    const char* what) const;
  std::vector<at::Tensor> tokens() const;

  const Denoiser& model_;
  const ModelInfo& info_;
  const GenerateOptions& options_;
  std::shared_ptr<const Policy> policy_;
  at::Tensor forbidden_;
  std::vector<Canvas> canvases_;
  int64_t rows_ = 0;
  int64_t steps_ = 0;  // of the longest sequence
};

Loop::Loop(const Denoiser& model, const std::vector<at::Tensor>& sequences,
           const GenerateOptions& options)
    : model_(model),
      info_(model.info()),
      options_(options),
      policy_(options.policy ? options.policy : make_policy("confidence")) {
  std::vector<HostTokens> given = checked_tokens(info_, sequences);
  check(options, info_, given.size());
  forbidden_ = to_tensor(all_forbidden(options, info_), info_.device);
  int64_t masks = 0;
  for (size_t b = 0; b < given.size(); ++b) {
    rows_ += static_cast<int64_t>(given[b].size());
    Schedule schedule(given[b], info_.mask_token_id, options.steps, options.block_length, b);
    masks += schedule.masked();
    steps_ = std::max(steps_, schedule.total_steps());
    HostTokens unguided;
    if (options.cfg_scale > 0) unguided.assign(given[b].size(), info_.mask_token_id);
    const int64_t id =
        options.sequence_ids.empty() ? static_cast<int64_t>(b) : options.sequence_ids[b];
    canvases_.push_back({std::move(given[b]), std::move(unguided), std::move(schedule), id});
  }
  require(masks > 0,
          text("there is nothing to fill: no sequence holds the mask token ", info_.mask_token_id,
               "; pass gen_length, or put masks where text is "
               "wanted"));
}

GenerateResult Loop::run() {
  GenerateResult result;
  const auto start = Clock::now();
  const auto unfinished = [&] {
    return std::any_of(canvases_.begin(), canvases_.end(),
                       [](const Canvas& c) { return !c.schedule.done(); });
  };
  for (int64_t number = 0; unfinished(); ++number) {
    result.trace.push_back(step(number, number ? &result.trace.back() : nullptr));
    result.forward_rows += result.trace.back().forward_rows;
    result.backward_rows += result.trace.back().backward_rows;
    result.head_rows += result.trace.back().head_rows;
    if (options_.callback && !options_.callback(result.trace.back(), tokens())) {
      result.finished = !unfinished();
      break;
    }
  }
  result.tokens = tokens();
  result.forward_equivalents =
      static_cast<double>(result.forward_rows + result.backward_rows) / rows_;
  result.seconds = seconds_since(start);
  return result;
}

std::vector<at::Tensor> Loop::tokens() const {
  std::vector<at::Tensor> out;
  for (const Canvas& c : canvases_) out.push_back(to_tensor(c.tokens));
  return out;
}

StepRecord Loop::step(int64_t number, StepRecord* before) {
  const auto start = Clock::now();
  StepRecord record;
  record.step = number;
  record.steps = steps_;
  std::vector<Canvas*> live;
  std::vector<const HostTokens*> live_tokens;
  std::vector<int64_t> rows, positions, cu_rows{0};
  int64_t offset = 0;
  for (Canvas& c : canvases_) {
    record.masked.push_back(c.schedule.masked());
    record.eligible.push_back(0);
    record.predicted_fall.push_back(kNan);
    record.realised_fall.push_back(kNan);
    if (c.schedule.done()) continue;
    for (int64_t i = c.schedule.begin(); i < c.schedule.end(); ++i) {
      if (c.tokens[i] != info_.mask_token_id) continue;
      rows.push_back(offset + i);
      positions.push_back(i);
    }
    record.eligible.back() = static_cast<int64_t>(rows.size()) - cu_rows.back();
    cu_rows.push_back(static_cast<int64_t>(rows.size()));
    offset += static_cast<int64_t>(c.tokens.size());
    live.push_back(&c);
    live_tokens.push_back(&c.tokens);
  }
  const PackedBatch batch = pack(live_tokens, info_.device);
  const RowSet eligible = row_set(std::move(rows), std::move(cu_rows), info_.device);
  const HostPredictions seen = look(number, live, eligible, batch, record);
  if (before) realise(live, positions, eligible, seen, *before);
  reveal(live, positions, eligible, seen, record);
  record.seconds = seconds_since(start);
  return record;
}

HostPredictions Loop::look(int64_t number, const std::vector<Canvas*>& live, const RowSet& eligible,
                           const PackedBatch& batch, StepRecord& record) const {
  const int64_t n = eligible.count();
  const int64_t passes = options_.cfg_scale > 0 ? 2 : 1;
  std::vector<int64_t> sequence, steps, total, quota;
  for (const Canvas* c : live) {
    sequence.push_back(c->id);
    steps.push_back(c->step);
    total.push_back(c->schedule.total_steps());
    quota.push_back(c->schedule.quota());
  }
  PredictRequest request{
      batch, eligible, nullptr, forbidden_, options_, {}, policy_->wants_context(steps)};
  PackedBatch unguided;
  if (options_.cfg_scale > 0) {
    std::vector<const HostTokens*> canvases;
    for (Canvas* c : live) canvases.push_back(&c->unguided);
    unguided = pack(canvases, info_.device);
    request.unguided = &unguided;
  }
  if (options_.temperature > 0) {
    at::Tensor uniforms = at::empty({n}, at::kDouble);
    double* out = uniforms.data_ptr<double>();
    const at::Tensor rows = eligible.rows.to(at::kCPU);
    const int64_t* row = rows.const_data_ptr<int64_t>();
    for (size_t b = 0; b < live.size(); ++b) {
      for (int64_t i = eligible.cu_rows[b]; i < eligible.cu_rows[b + 1]; ++i) {
        out[i] = counter_uniform(options_.seed, Stream::token, live[b]->id,
                                 row[i] - batch.cu_seqlens[b], live[b]->step);
      }
    }
    request.uniforms = uniforms.to(info_.device);
  }
  const auto start = Clock::now();
  const Predicted predicted = predict(model_, request);
  const Predictions& predictions = predicted.predictions;
  const at::Tensor entropy = predictions.entropy.to(at::kCPU, at::kDouble);
  check_finite(number, live, eligible, batch.cu_seqlens, entropy,
               "the model's logits are NaN, or "
               "infinite at every token");
  const StepContext context{model_,
                            batch,
                            eligible,
                            predictions,
                            predicted.features,
                            forbidden_,
                            predicted.context.get(),
                            sequence,
                            steps,
                            total,
                            quota,
                            options_.seed,
                            options_.poll};
  record.model_seconds = seconds_since(start);
  const Scores scores = policy_->score(context);
  // A policy that looks ahead spends its time in the model.
  if (scores.forward_rows > 0) record.model_seconds = seconds_since(start);
  const at::Tensor score = scores.score.to(at::kCPU, at::kDouble).contiguous();
  require(score.dim() == 1 && score.size(0) == n,
          text("policy ", policy_->name(), " gave scores of shape ", score.sizes(), " for ", n,
               " eligible rows"));
  check_finite(number, live, eligible, batch.cu_seqlens, score, "the policy's score is NaN");
  record.forward_rows = passes * batch.rows() + scores.forward_rows;
  record.backward_rows = scores.backward_rows;
  record.head_rows = passes * n + scores.head_rows;
  record.scored = n;
  HostPredictions seen{predictions.token.to(at::kCPU),
                       predictions.confidence.to(at::kCPU, at::kDouble),
                       entropy,
                       score,
                       {},
                       {}};
  if (scores.influence.defined()) {
    seen.influence = scores.influence.to(at::kCPU, at::kDouble).contiguous();
    seen.probes = scores.probes.to(at::kCPU).contiguous();
    record.scored = seen.influence.isnan().logical_not().sum().item<int64_t>();
  }
  return seen;
}

void Loop::realise(const std::vector<Canvas*>& live, const std::vector<int64_t>& positions,
                   const RowSet& eligible, const HostPredictions& seen, StepRecord& before) const {
  const double* entropy = seen.entropy.const_data_ptr<double>();
  for (size_t b = 0; b < live.size(); ++b) {
    const Expectation& expected = live[b]->expected;
    const auto first = positions.begin() + eligible.cu_rows[b];
    const auto last = positions.begin() + eligible.cu_rows[b + 1];
    double fall = 0;
    int64_t found = 0;
    for (size_t i = 0; i < expected.positions.size(); ++i) {
      const auto at = std::lower_bound(first, last, expected.positions[i]);
      if (at == last || *at != expected.positions[i]) continue;
      fall += expected.entropy[i] - entropy[at - positions.begin()];
      ++found;
    }
    if (found > 0) before.realised_fall[live[b] - canvases_.data()] = fall;
  }
}

void Loop::check_finite(int64_t number, const std::vector<Canvas*>& live, const RowSet& eligible,
                        const std::vector<int64_t>& cu_seqlens, const at::Tensor& values,
                        const char* what) const {
  const double* v = values.const_data_ptr<double>();
  const auto bad = std::find_if(v, v + values.numel(), [](double x) { return std::isnan(x); });
  if (bad == v + values.numel()) return;
  const int64_t i = bad - v;
  const auto& cu = eligible.cu_rows;
  const size_t b = std::upper_bound(cu.begin(), cu.end(), i) - cu.begin() - 1;
  const int64_t position = eligible.rows[i].item<int64_t>() - cu_seqlens[b];
  throw NumericsError(text("step ", number, ", sequence ", live[b] - canvases_.data(),
                           ", position ", position, ": ", what,
                           "; check the checkpoint and try dtype float32"));
}

void Loop::reveal(const std::vector<Canvas*>& live, const std::vector<int64_t>& positions,
                  const RowSet& eligible, const HostPredictions& seen, StepRecord& record) {
  const int64_t* token = seen.token.const_data_ptr<int64_t>();
  const double* score = seen.score.const_data_ptr<double>();
  const double* confidence = seen.confidence.const_data_ptr<double>();
  const double* entropy = seen.entropy.const_data_ptr<double>();
  const double* influence =
      seen.influence.defined() ? seen.influence.const_data_ptr<double>() : nullptr;
  const auto ends_text = [&](int64_t row) {
    const auto& eos = info_.eos_token_ids;
    return options_.confidence_eos_eot_inf &&
           std::find(eos.begin(), eos.end(), token[row]) != eos.end();
  };
  std::vector<int64_t> chosen, sequence, position, by_confidence;
  for (size_t b = 0; b < live.size(); ++b) {
    Canvas& canvas = *live[b];
    std::vector<int64_t> order(eligible.cu_rows[b + 1] - eligible.cu_rows[b]);
    std::iota(order.begin(), order.end(), eligible.cu_rows[b]);
    const auto better = [&](int64_t x, int64_t y) {
      const bool x_last = ends_text(x), y_last = ends_text(y);
      if (x_last != y_last) return y_last;
      return score[x] > score[y] || (score[x] == score[y] && x < y);
    };
    const int64_t quota = canvas.schedule.quota();
    std::partial_sort(order.begin(), order.begin() + quota, order.end(), better);
    std::sort(order.begin(), order.begin() + quota);
    const std::vector<int64_t> confident =
        largest(confidence, eligible.cu_rows[b], eligible.cu_rows[b + 1], quota);
    canvas.expected = {};
    double predicted = 0;
    bool steered = false;
    for (int64_t k = 0; k < quota; ++k) {
      const int64_t row = order[k];
      by_confidence.push_back(std::binary_search(confident.begin(), confident.end(), row));
      if (influence && !std::isnan(influence[row])) {
        predicted += influence[row];
        steered = true;
      }
      canvas.tokens[positions[row]] = token[row];
      if (!canvas.unguided.empty()) canvas.unguided[positions[row]] = token[row];
      chosen.push_back(row);
      sequence.push_back(&canvas - canvases_.data());
      position.push_back(positions[row]);
    }
    if (steered) {
      record.predicted_fall[&canvas - canvases_.data()] = predicted;
      const bool* probes = seen.probes.const_data_ptr<bool>();
      for (int64_t row = eligible.cu_rows[b]; row < eligible.cu_rows[b + 1]; ++row) {
        if (!probes[row]) continue;
        canvas.expected.positions.push_back(positions[row]);
        canvas.expected.entropy.push_back(entropy[row]);
      }
    }
    canvas.schedule.advance(quota);
    ++canvas.step;
  }
  const at::Tensor rows = to_tensor(chosen);
  record.sequence = to_tensor(sequence);
  record.position = to_tensor(position);
  record.token = seen.token.index_select(0, rows);
  record.confidence = seen.confidence.index_select(0, rows);
  record.entropy = seen.entropy.index_select(0, rows);
  record.score = seen.score.index_select(0, rows);
  record.influence =
      influence ? seen.influence.index_select(0, rows) : at::full_like(record.score, kNan);
  record.by_confidence = to_tensor(by_confidence).to(at::kBool);
}

}  // namespace

GenerateResult generate(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                        const GenerateOptions& options) {
  return Loop(model, sequences, options).run();
}

at::Tensor with_masks(const Denoiser& model, const at::Tensor& prompt, int64_t gen_length) {
  require(prompt.defined() && prompt.dim() == 1, "the prompt must be a 1-D tensor of token ids");
  const ModelInfo& info = model.info();
  require(gen_length >= 1, text("gen_length must be at least 1, not ", gen_length));
  require(prompt.size(0) <= info.max_length && gen_length <= info.max_length - prompt.size(0),
          text("a prompt of ", prompt.size(0), " tokens and gen_length ", gen_length,
               " exceed the model's ", info.max_length, " positions"));
  return at::cat(
      {prompt.to(at::kCPU, at::kLong), at::full({gen_length}, info.mask_token_id, at::kLong)});
}

at::Tensor logits(const Denoiser& model, const std::vector<at::Tensor>& sequences) {
  const PlainDispatch plain;
  const std::vector<HostTokens> tokens = checked_tokens(model.info(), sequences);
  std::vector<const HostTokens*> pointers;
  for (const HostTokens& t : tokens) pointers.push_back(&t);
  const PackedBatch batch = pack(pointers, model.info().device);
  const at::Tensor out = model.project(model.encode(batch, all_rows(batch)));
  return out.scalar_type() == at::kDouble ? out : out.to(at::kFloat);
}

}  // namespace tabes
