#include "decode/decode.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "batch/forbidden.h"
#include "messages.h"

namespace tabes {
namespace {

void require(bool ok, const std::string& message) {
  if (!ok) throw InputError(message);
}

// Beyond this guided logits could overflow.
constexpr double kMaxScale = 1e9;
// A policy that takes all of its steps records each of them.
constexpr int64_t kMaxTimedSteps = 1'000'000;

void check(const GenerateOptions& o, Pace pace, size_t batch) {
  require(pace != Pace::timed || o.steps <= kMaxTimedSteps,
          text("steps must be at most ", kMaxTimedSteps, ", not ", o.steps,
               ", with a policy that takes all of them"));
  require(o.steps >= 1, text("steps must be at least 1, not ", o.steps));
  require(!o.block_length || *o.block_length >= 1,
          text("block_length must be at least 1, not ", o.block_length.value_or(0)));
  require(std::isfinite(o.temperature) && o.temperature >= 0,
          text("temperature must be 0 (take the likeliest token) or above, not ", o.temperature));
  require(o.top_p > 0 && o.top_p <= 1, text("top_p must be in (0, 1], not ", o.top_p));
  require(o.top_k >= 0, text("top_k must be 0 (no cut) or above, not ", o.top_k));
  require(o.cfg_scale >= 0 && o.cfg_scale <= kMaxScale,
          text("cfg_scale must be from 0 (off) to ", kMaxScale, ", not ", o.cfg_scale));
  require(o.refresh_every >= 0,
          text("refresh_every must be 0 (never again) or above, not ", o.refresh_every));
  require(o.refresh_every == 1 || o.cfg_scale == 0,
          text("refresh_every ", o.refresh_every,
               " does not go with guidance; leave refresh_every or cfg_scale at its default"));
  require(o.sequence_ids.empty() || o.sequence_ids.size() == batch,
          text("sequence_ids has ", o.sequence_ids.size(), " entries for ", batch, " sequences"));
  for (size_t b = 0; b < o.sequence_ids.size(); ++b) {
    require(o.sequence_ids[b] >= 0, text("sequence_ids[", b, "] is ", o.sequence_ids[b],
                                         "; number sequences from 0 to 2^63 - 1"));
  }
}

// The mask, special tokens, the caller's, and with logits_eos_inf the ends of text.
std::vector<int64_t> all_forbidden(const GenerateOptions& options, const ModelInfo& info) {
  std::vector<int64_t> ids = options.forbidden;
  if (options.logits_eos_inf) {
    ids.insert(ids.end(), info.eos_token_ids.begin(), info.eos_token_ids.end());
  }
  return checked_forbidden(info, std::move(ids), options.allow_special);
}

}  // namespace

Decode::Decode(const Denoiser& model, const std::vector<at::Tensor>& sequences,
               const GenerateOptions& options)
    : info_(model.info()),
      options_(options),
      policy_(options.policy ? options.policy : make_policy("confidence")),
      pace_(policy_->pace()),
      model_(model) {
  std::vector<HostTokens> given = checked_tokens(info_, sequences);
  check(options, pace_, given.size());
  forbidden_ = to_tensor(all_forbidden(options, info_), info_.device);
  int64_t masks = 0;
  for (size_t b = 0; b < given.size(); ++b) {
    const size_t length = given[b].size();
    rows_ += static_cast<int64_t>(length);
    Schedule schedule(given[b], info_.mask_token_id, options.steps, options.block_length, b, pace_,
                      policy_->at_least_quota());
    masks += schedule.masked();
    HostTokens unguided;
    if (options.cfg_scale > 0) unguided.assign(length, info_.mask_token_id);
    const int64_t id =
        options.sequence_ids.empty() ? static_cast<int64_t>(b) : options.sequence_ids[b];
    canvases_.push_back({b, std::move(given[b]), std::move(unguided),
                         std::vector<double>(length, std::numeric_limits<double>::quiet_NaN()),
                         std::move(schedule), id});
  }
  require(masks > 0,
          text("there is nothing to fill: no sequence holds the mask token ", info_.mask_token_id,
               "; pass gen_length, or put masks where text is "
               "wanted"));
}

std::string Decode::bound_to_host() const {
  if (options_.callback) return "a callback watches every step";
  if (options_.cfg_scale > 0) return "guidance is computed by the host's loop";
  if (pace_ == Pace::timed || !policy_->on_device(model_)) {
    return text("policy ", policy_->name(), " with these settings and this model needs the host");
  }
  const bool in_blocks = std::any_of(canvases_.begin(), canvases_.end(), [](const Canvas& c) {
    return c.schedule.blocks().size() > 1;
  });
  if (in_blocks && policy_->wants_waiting()) {
    return text("policy ", policy_->name(), " looks at later blocks, which the host finds");
  }
  if (options_.refresh_every != 1 && info_.logit_shift) {
    return "frozen steps of a model whose logits are shifted need the host";
  }
  return {};
}

void Decode::replay_passes() {
  replayed_ = model_.replayed();
}

bool Decode::unfinished() const {
  return std::any_of(canvases_.begin(), canvases_.end(),
                     [](const Canvas& c) { return !c.schedule.done(); });
}

int64_t Decode::most_steps(int64_t number) const {
  int64_t left = 0;
  for (const Canvas& c : canvases_) left = std::max(left, c.schedule.steps_left());
  return number + left;
}

int64_t Decode::least_count(const Schedule& schedule) const {
  if (pace_ != Pace::adaptive) return 0;
  return policy_->at_least_quota() ? schedule.quota() : 1;
}

bool Decode::may_freeze() const {
  const int64_t every = options_.refresh_every;
  return every != 1 && context_ && (every == 0 || since_full_ < every);
}

Predicted Decode::in_context(PredictRequest request, const std::optional<RowSet>& active,
                             const std::function<Predicted(const PredictRequest&)>& run) {
  if (!active) {
    context_.reset();
    since_full_ = 1;
    Predicted predicted = run(request);
    context_ = std::move(predicted.context);
    return predicted;
  }
  request.active = &*active;
  request.context = context_.get();
  request.keep_context = false;
  ++since_full_;
  return run(request);
}

void Decode::count_rows(const StepRecord& record, GenerateResult& result) {
  result.cost += record.cost;
}

void Decode::close(GenerateResult& result) const {
  result.tokens = tokens();
  if (replayed_) result.replayed_passes = replayed_->replays();
  result.forward_equivalents =
      static_cast<double>(result.cost.forward_rows + result.cost.backward_rows) / rows_;
}

void Decode::not_finite(int64_t number, size_t place, int64_t position, const char* what) {
  throw NumericsError(
      text("step ", number, ", sequence ", place, ", position ", position, ": ", what));
}

std::string Decode::out_of_memory(int64_t number) const {
  int64_t live = 0, longest = 0;
  for (const Canvas& c : canvases_) {
    live += c.schedule.done() ? 0 : 1;
    longest = std::max(longest, static_cast<int64_t>(c.tokens.size()));
  }
  return text(
      "out of memory on ", info_.device, " in step ", number, " of ", live, " sequences of up to ",
      longest, " tokens by policy ", policy_->name(),
      ": decode fewer at a time, or shorter ones; a policy that computes gradients or looks "
      "ahead takes more than confidence does (BoE: lower n_candidates or rho)");
}

std::vector<at::Tensor> Decode::tokens() const {
  std::vector<at::Tensor> out;
  for (const Canvas& c : canvases_) out.push_back(to_tensor(c.tokens));
  return out;
}

}  // namespace tabes
