#include "decode/device_loop.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "messages.h"
#include "ops/ops.h"
#include "out_of_memory.h"
#include "plain_dispatch.h"

namespace tabes {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kNoBlock = std::numeric_limits<int64_t>::max();

// What is read of every entry of a step.
enum Field {
  kPosition,
  kValid,
  kChosen,
  kToken,
  kConfidence,
  kEntropy,
  kScore,
  kInfluence,
  kByConfidence
};

int64_t length_of(const Canvas& c) {
  return static_cast<int64_t>(c.tokens.size());
}

}  // namespace

DeviceLoop::DeviceLoop(Decode decode, int64_t bucket)
    : Decode(std::move(decode)), bucket_(bucket), finished_(canvases_.size()) {}

void DeviceLoop::open() {
  State& s = state_;
  int64_t width = 0, blocks = 0;
  std::vector<const HostTokens*> tokens;
  for (Canvas& c : canvases_) {
    if (c.schedule.done()) {
      finished_[c.place] = to_tensor(c.tokens);
      continue;
    }
    s.live.push_back(&c);
    tokens.push_back(&c.tokens);
    width = std::max(width, length_of(c));
    blocks = std::max(blocks, static_cast<int64_t>(c.schedule.blocks().size()));
  }
  const PackedBatch batch = pack(tokens, info_.device);
  s.tokens = batch.tokens;
  s.cu_seqlens = batch.cu_seqlens;
  std::vector<int64_t> row, inside, block, block_steps, sequence, first, steps;
  for (size_t b = 0; b < s.live.size(); ++b) {
    const Canvas& c = *s.live[b];
    const std::vector<Schedule::Block>& own = c.schedule.blocks();
    for (int64_t i = 0; i < width; ++i) {
      row.push_back(s.cu_seqlens[b] + std::min(i, length_of(c) - 1));
      inside.push_back(i < length_of(c));
      const auto at = std::find_if(own.begin(), own.end(), [&](const Schedule::Block& k) {
        return i >= k.begin && i < k.end;
      });
      block.push_back(at == own.end() ? kNoBlock : at - own.begin());
    }
    for (int64_t k = 0; k < blocks; ++k) {
      block_steps.push_back(k < static_cast<int64_t>(own.size()) ? own[k].steps : 1);
    }
    sequence.push_back(c.id);
    first.push_back(c.schedule.start());
    steps.push_back(c.schedule.total_steps());
  }
  const int64_t n = s.size();
  const auto send = [&](const std::vector<int64_t>& values) {
    return to_tensor(values, info_.device);
  };
  s.row = send(row).view({n, width});
  s.inside = send(inside).view({n, width}).to(at::kBool);
  s.block = send(block).view({n, width});
  s.block_steps = send(block_steps).view({n, blocks});
  s.sequence = send(sequence);
  s.first = send(first);
  s.steps = send(steps);
  s.current = at::full({n}, -1, s.tokens.options());
  s.done = at::zeros({n}, s.tokens.options());
  s.before = at::zeros({n, width}, s.inside.options());
  s.before_bounds.columns.assign(n, 0);
  s.before_bounds.block.assign(n, 0);
  number_ = at::zeros({1}, s.tokens.options());
}

void DeviceLoop::keep_unfinished() {
  State& s = state_;
  if (std::none_of(s.live.begin(), s.live.end(),
                   [](const Canvas* c) { return c->schedule.done(); })) {
    return;
  }
  State left;
  left.cu_seqlens = {0};
  std::vector<int64_t> kept, rows, shift;
  for (size_t b = 0; b < s.live.size(); ++b) {
    Canvas* c = s.live[b];
    const int64_t from = s.cu_seqlens[b];
    if (c->schedule.done()) {
      finished_[c->place] = s.tokens.narrow(0, from, length_of(*c));
      continue;
    }
    shift.push_back(from - left.cu_seqlens.back());
    kept.push_back(static_cast<int64_t>(b));
    for (int64_t i = from; i < s.cu_seqlens[b + 1]; ++i) rows.push_back(i);
    left.live.push_back(c);
    left.cu_seqlens.push_back(static_cast<int64_t>(rows.size()));
    left.before_bounds.columns.push_back(s.before_bounds.columns[b]);
    left.before_bounds.block.push_back(s.before_bounds.block[b]);
  }
  const at::Tensor sequences = to_tensor(kept, info_.device), at = to_tensor(rows, info_.device);
  const auto select = [&](const at::Tensor& t) { return t.index_select(0, sequences); };
  left.tokens = s.tokens.index_select(0, at);
  left.row = select(s.row) - to_tensor(shift, info_.device).unsqueeze(1);
  left.inside = select(s.inside);
  left.block = select(s.block);
  left.block_steps = select(s.block_steps);
  left.sequence = select(s.sequence);
  left.first = select(s.first);
  left.steps = select(s.steps);
  left.current = select(s.current);
  left.done = select(s.done);
  left.before = select(s.before);
  if (context_ && !kept.empty()) context_->select(at);
  state_ = std::move(left);
}

DeviceLoop::Bounds DeviceLoop::bounds(bool pending) const {
  // Under an adaptive pace what the step before does is not known yet; it reveals at least one row.
  const bool behind = pace_ == Pace::adaptive;
  Bounds result;
  for (size_t b = 0; b < state_.live.size(); ++b) {
    const Canvas& c = *state_.live[b];
    const Schedule& schedule = c.schedule;
    const int64_t most = behind ? schedule.most_eligible(pending) : schedule.eligible();
    const int64_t rounded = (std::max<int64_t>(1, most) + bucket_ - 1) / bucket_ * bucket_;
    result.columns.push_back(std::min(rounded, length_of(c)));
    result.quota.push_back(behind ? schedule.most_quota() : schedule.quota());
    result.block.push_back(schedule.block());
    // In a frozen step: the rows that were eligible in the last step, or are now.
    const int64_t now = result.columns[b], before = state_.before_bounds.columns[b];
    const bool same_block = schedule.blocks().size() == 1 ||
                            (!behind && schedule.block() == state_.before_bounds.block[b]);
    result.active.push_back(
        std::min(length_of(c), same_block ? std::max(now, before) : now + before));
  }
  return result;
}

const Ragged& DeviceLoop::ragged(const std::vector<int64_t>& counts) {
  const int64_t width = *std::max_element(counts.begin(), counts.end());
  return shapes_.try_emplace(counts, counts, width, info_.device).first->second;
}

void DeviceLoop::send(Pending& step) const {
  if (info_.device.is_cpu()) return;
  for (at::Tensor* t : {&step.rows, &step.sequences}) {
    const at::Tensor host =
        at::empty(t->sizes(), t->options().device(at::kCPU).pinned_memory(true));
    host.copy_(*t, /*non_blocking=*/true);
    *t = host;
  }
  step.done.emplace(info_.device.type());
  step.done->record(c10::impl::VirtualGuardImpl(info_.device.type()).getStream(info_.device));
}

Predicted DeviceLoop::look(const PackedBatch& batch, const RowSet& rows, const RowSet* active,
                           const at::Tensor& uniforms, bool keep_context, StepRecord& record) {
  PredictRequest request{batch, rows, nullptr, forbidden_, options_, uniforms, keep_context};
  if (active) {
    request.active = active;
    request.context = context_.get();
    request.keep_context = false;
    ++since_full_;
  } else {
    context_.reset();
    since_full_ = 1;
  }
  Predicted predicted = predict(model_, request);
  if (!active) context_ = std::move(predicted.context);
  record.forward_rows += active ? active->count() : batch.rows();
  record.head_rows += rows.count();
  return predicted;
}

DeviceLoop::Pending DeviceLoop::launch(int64_t number, bool pending) {
  const PlainDispatch plain;
  State& s = state_;
  const int64_t n = s.size(), width = s.width();
  Pending step;
  step.start = Clock::now();
  step.live = s.live;
  step.record.step = number;
  step.record.steps = steps_;
  const PackedBatch batch{s.tokens, s.cu_seqlens};

  // Where the masks are, and how many of them the schedule wants revealed.
  const at::Tensor masked =
      s.tokens.index_select(0, s.row.view(-1)).view({n, width}).eq(info_.mask_token_id) & s.inside;
  const at::Tensor block = std::get<0>(at::where(masked, s.block, kNoBlock).min(1));
  const at::Tensor is_eligible = masked & s.block.eq(block.unsqueeze(1));
  const at::Tensor eligible = is_eligible.sum(1);
  const at::Tensor done = at::where(block.eq(s.current), s.done, 0);
  const at::Tensor steps =
      s.block_steps.gather(1, block.clamp_max(s.block_steps.size(1) - 1).unsqueeze(1)).squeeze(1);
  const at::Tensor left = (steps - done).clamp_min(1);
  const at::Tensor quota = (eligible + left - 1).div(left, "floor");

  // The rows to be looked at: the eligible ones, and others up to the bound.
  Bounds most = bounds(pending);
  const Ragged& shape = ragged(most.columns);
  at::Tensor key = at::where(is_eligible, 0, at::where(s.inside, 2, 3));
  std::vector<int64_t> host_steps(n, number);
  const bool keep_context = options_.refresh_every != 1 || policy_->wants_context(host_steps);
  const int64_t every = options_.refresh_every;
  const bool frozen =
      keep_context && every != 1 && context_ && !(every > 1 && since_full_ >= every);
  std::optional<RowSet> active;
  if (frozen) {
    const Ragged& around = ragged(most.active);
    const at::Tensor cells = leading(at::where(is_eligible | s.before, 0, key), around);
    active = RowSet{around.pack(s.row.gather(1, cells.clamp_max(width - 1))), around.cu()};
    // Rows that only fill up the number must be among the active ones.
    const at::Tensor is_active =
        at::zeros({n, 2 * width}, s.inside.options()).scatter_(1, cells, true).narrow(1, 0, width);
    key = at::where(is_eligible, 0, at::where(is_active, 1, key));
  }
  const at::Tensor cells = leading(key, shape), known = cells.clamp_max(width - 1);
  const at::Tensor valid = is_eligible.gather(1, known) & shape.inside();
  const at::Tensor row = s.row.gather(1, known);
  const RowSet rows{shape.pack(row), shape.cu()};

  at::Tensor uniforms;
  if (options_.temperature > 0) {
    uniforms = ops::counter_uniforms(shape.pack(s.sequence.unsqueeze(1).expand_as(known)),
                                     shape.pack(known), number_.expand({rows.count()}).contiguous(),
                                     options_.seed, Stream::token);
  }
  Predicted seen =
      look(batch, rows, active ? &*active : nullptr, uniforms, keep_context, step.record);
  const auto matrix = [&](const at::Tensor& t) { return shape.unpack(t.to(at::kDouble), 0.0); };
  const Predictions& flat = seen.predictions;
  const Predictions predictions{shape.unpack(flat.token, 0), matrix(flat.confidence),
                                matrix(flat.max_prob), matrix(flat.margin), matrix(flat.entropy)};

  const DeviceStep context{
      model_,        batch,          row,          known,          valid,    predictions,
      seen.features, shape.places(), forbidden_,   context_.get(), eligible, quota,
      s.sequence,    s.first,        number_,      s.steps,        number,   most.columns,
      most.quota,    options_.seed,  options_.poll};
  const DeviceDecision decision = policy_->decide_on_device(context);
  step.record.forward_rows += decision.forward_rows;
  step.record.backward_rows += decision.backward_rows;
  step.record.head_rows += decision.head_rows;

  // The best of every sequence are written.
  at::Tensor last;
  if (options_.confidence_eos_eot_inf && !info_.eos_token_ids.empty()) {
    last = at::isin(predictions.token, to_tensor(info_.eos_token_ids, info_.device));
  }
  const at::Tensor count = at::minimum(decision.count.defined() ? decision.count : quota, eligible);
  const at::Tensor chosen = rank_by(decision.score, valid, last).lt(count.unsqueeze(1)) & valid;
  const at::Tensor by_confidence =
      rank_by(predictions.confidence, valid).lt(count.unsqueeze(1)) & valid;
  s.tokens.index_copy_(0, rows.rows,
                       at::where(shape.pack(chosen), shape.pack(predictions.token),
                                 s.tokens.index_select(0, rows.rows)));
  s.current = at::where(eligible.gt(0), block, s.current);
  s.done = done + eligible.gt(0).to(at::kLong);
  s.before = is_eligible;
  s.before_bounds = std::move(most);
  number_.add_(1);

  const at::Tensor influence = decision.influence.defined()
                                   ? decision.influence
                                   : at::full(valid.sizes(), kNan, decision.score.options());
  const auto real = [](const at::Tensor& t) { return t.to(at::kDouble); };
  step.rows = at::stack(
      {real(known), real(valid), real(chosen), real(predictions.token), predictions.confidence,
       predictions.entropy, decision.score, influence, real(by_confidence)},
      2);
  step.sequences = at::stack({masked.sum(1), eligible, count}, 1);
  send(step);
  return step;
}

bool DeviceLoop::finish(Pending& step, StepRecord* before) {
  if (step.done) step.done->synchronize();
  StepRecord& record = step.record;
  const int64_t columns = step.rows.size(1), fields = step.rows.size(2);
  const double* value = step.rows.const_data_ptr<double>();
  const int64_t* counts = step.sequences.const_data_ptr<int64_t>();
  const size_t all = canvases_.size();
  record.masked.assign(all, 0);
  record.eligible.assign(all, 0);
  record.predicted_fall.assign(all, kNan);
  record.realised_fall.assign(all, kNan);
  std::vector<int64_t> sequence, position, token;
  std::vector<double> confidence, entropy, score, influence;
  std::vector<char> by_confidence;
  int64_t scored = 0;
  for (size_t b = 0; b < step.live.size(); ++b) {
    Canvas& c = *step.live[b];
    record.masked[c.place] = counts[3 * b];
    record.eligible[c.place] = counts[3 * b + 1];
    TORCH_INTERNAL_ASSERT(counts[3 * b + 1] <= columns, "a bound on eligible rows does not hold");
    Expectation expected;
    double predicted = 0, fall = 0;
    bool steered = false, found = false;
    std::vector<double> entropies(length_of(c), kNan);
    for (int64_t k = 0; k < columns; ++k) {
      const double* f = value + (static_cast<int64_t>(b) * columns + k) * fields;
      if (f[kValid] == 0) continue;
      const auto at = static_cast<int64_t>(f[kPosition]);
      if (std::isnan(f[kEntropy])) {
        not_finite(record.step, c.place, at,
                   "the model's logits are NaN, or infinite at every token");
      }
      if (std::isnan(f[kScore])) {
        not_finite(record.step, c.place, at, "the policy's score is NaN");
      }
      entropies[at] = f[kEntropy];
      if (!std::isnan(f[kInfluence])) {
        ++scored;
        expected.positions.push_back(at);
        expected.entropy.push_back(f[kEntropy]);
      }
      if (f[kChosen] == 0) continue;
      if (!std::isnan(f[kInfluence])) {
        predicted += f[kInfluence];
        steered = true;
      }
      sequence.push_back(static_cast<int64_t>(c.place));
      position.push_back(at);
      token.push_back(static_cast<int64_t>(f[kToken]));
      confidence.push_back(f[kConfidence]);
      entropy.push_back(f[kEntropy]);
      score.push_back(f[kScore]);
      influence.push_back(f[kInfluence]);
      by_confidence.push_back(f[kByConfidence] != 0);
    }
    for (size_t i = 0; i < c.expected.positions.size(); ++i) {
      const double now = entropies[c.expected.positions[i]];
      if (std::isnan(now)) continue;
      fall += c.expected.entropy[i] - now;
      found = true;
    }
    if (found && before) before->realised_fall[c.place] = fall;
    if (steered) record.predicted_fall[c.place] = predicted;
    c.expected = steered ? std::move(expected) : Expectation{};
    if (pace_ == Pace::adaptive && counts[3 * b + 1] > 0) c.schedule.advance(counts[3 * b + 2]);
  }
  const auto reals = [](const std::vector<double>& v) {
    at::Tensor t = at::empty({static_cast<int64_t>(v.size())}, at::kDouble);
    std::copy(v.begin(), v.end(), t.data_ptr<double>());
    return t;
  };
  record.scored = scored;
  if (scored == 0) {
    for (const int64_t e : record.eligible) record.scored += e;
  }
  record.sequence = to_tensor(sequence);
  record.position = to_tensor(position);
  record.token = to_tensor(token);
  record.confidence = reals(confidence);
  record.entropy = reals(entropy);
  record.score = reals(score);
  record.influence = reals(influence);
  record.by_confidence = to_tensor({by_confidence.begin(), by_confidence.end()}).to(at::kBool);
  record.remasked_sequence = record.remasked_position = to_tensor({});
  record.model_seconds = kNan;
  record.seconds = std::chrono::duration<double>(Clock::now() - step.start).count();
  return !position.empty();
}

GenerateResult DeviceLoop::run() {
  GenerateResult result;
  const auto start = Clock::now();
  std::optional<Pending> pending;
  // Reads a step, which is the one before what has just been launched.
  const auto read = [&] {
    const bool revealed = finish(*pending, result.trace.empty() ? nullptr : &result.trace.back());
    count_rows(pending->record, result);
    if (revealed) {
      result.trace.push_back(std::move(pending->record));
    } else {
      // It found every mask gone; what it cost belongs to the step before.
      StepRecord& before = result.trace.back();
      before.forward_rows += pending->record.forward_rows;
      before.backward_rows += pending->record.backward_rows;
      before.head_rows += pending->record.head_rows;
    }
    pending.reset();
  };
  const auto within = [&](int64_t number, const auto& work) {
    return within_memory(work, [&] { return out_of_memory(number); });
  };
  open();
  for (int64_t number = 0; unfinished(); ++number) {
    if (options_.poll) options_.poll();
    keep_unfinished();
    Pending step = within(number, [&] { return launch(number, pending.has_value()); });
    if (pace_ == Pace::quota) {
      for (Canvas* c : state_.live) c->schedule.advance(c->schedule.quota());
    }
    if (pending) within(number, read);
    pending = std::move(step);
  }
  if (pending) within(steps_, read);
  keep_unfinished();
  for (Canvas& c : canvases_) {
    const at::Tensor own = finished_[c.place].to(at::kCPU);
    const int64_t* token = own.const_data_ptr<int64_t>();
    c.tokens.assign(token, token + own.numel());
  }
  close(result);
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return result;
}

}  // namespace tabes
