// One step of a decode on the device, from masks to what is sent to the host.
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <limits>

#include "decode/answers.h"
#include "decode/counted.h"
#include "decode/device_loop.h"
#include "ops/ops.h"
#include "plain_dispatch.h"

namespace tabes {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

DeviceLoop::Bounds DeviceLoop::bounds(bool pending) const {
  // Under an adaptive pace what the step before does is not known yet; it reveals at least one row.
  const bool behind = pace_ == Pace::adaptive;
  Bounds result;
  for (size_t b = 0; b < state_.live.size(); ++b) {
    const Canvas& c = *state_.live[b];
    const Schedule& schedule = c.schedule;
    const int64_t most = behind ? schedule.most_eligible(pending) : schedule.eligible();
    result.eligible.push_back(most);
    const int64_t rounded = (std::max<int64_t>(1, most) + bucket_ - 1) / bucket_ * bucket_;
    result.columns.push_back(std::min(rounded, c.length()));
    result.quota.push_back(behind ? schedule.most_quota() : schedule.quota());
    result.block.push_back(schedule.block());
    // In a frozen step: the rows that were eligible in the last step, or are now.
    const int64_t now = result.columns[b], before = state_.before_bounds.columns[b];
    const bool same_block = schedule.blocks().size() == 1 ||
                            (!behind && schedule.block() == state_.before_bounds.block[b]);
    result.active.push_back(
        std::min(c.length(), same_block ? std::max(now, before) : now + before));
  }
  return result;
}

const Ragged& DeviceLoop::ragged(const std::vector<int64_t>& counts,
                                 std::optional<Ragged>& last) const {
  const int64_t width = *std::max_element(counts.begin(), counts.end());
  if (!last || last->counts() != counts) last.emplace(counts, width, info_.device);
  return *last;
}

DeviceLoop::Masks DeviceLoop::masks() const {
  const State& s = state_;
  const int64_t n = s.size(), width = s.width();
  Masks m;
  m.masked =
      s.tokens.index_select(0, s.row.view(-1)).view({n, width}).eq(info_.mask_token_id) & s.inside;
  m.block = std::get<0>(at::where(m.masked, s.block, kNoBlock).min(1));
  m.is_eligible = m.masked & s.block.eq(m.block.unsqueeze(1));
  m.eligible = m.is_eligible.sum(1);
  m.done = at::where(m.block.eq(s.current), s.done, 0);
  const at::Tensor known_block = m.block.clamp_max(s.block_steps.size(1) - 1);
  const at::Tensor steps = s.block_steps.gather(1, known_block.unsqueeze(1)).squeeze(1);
  const at::Tensor left = (steps - m.done).clamp_min(1);
  m.quota = (m.eligible - 1).div(left, "floor") + 1;  // rounded up, at any number of steps
  return m;
}

DeviceLoop::Looked DeviceLoop::looked_at(const Masks& m, const Bounds& most, bool frozen) {
  const State& s = state_;
  const int64_t n = s.size(), width = s.width();
  Looked rows{ragged(most.columns, columns_)};
  at::Tensor key = at::where(m.is_eligible, 0, at::where(s.inside, 2, 3));
  if (frozen) {
    const Ragged& around = ragged(most.active, active_);
    const at::Tensor changed = m.is_eligible | s.before;
    const at::Tensor cells = leading(at::where(changed, 0, key), around);
    const auto at_cells = [&](const at::Tensor& t) {
      return around.pack(t.gather(1, cells.clamp_max(width - 1)));
    };
    rows.active = RowSet{at_cells(s.row), around.cu(), at_cells(changed)};
    // Rows that only fill up the number must be among the active ones.
    const at::Tensor is_active =
        at::zeros({n, 2 * width}, s.inside.options()).scatter_(1, cells, true).narrow(1, 0, width);
    key = at::where(m.is_eligible, 0, at::where(is_active, 1, key));
  }
  rows.position = leading(key, rows.shape).clamp_max(width - 1);
  rows.valid = m.is_eligible.gather(1, rows.position) & rows.shape.inside();
  rows.row = s.row.gather(1, rows.position);
  rows.set = {rows.shape.pack(rows.row), rows.shape.cu()};
  return rows;
}

Predicted DeviceLoop::look(const Looked& rows, bool keep_context, StepRecord& record) {
  const State& s = state_;
  const PackedBatch batch{s.tokens, s.cu_seqlens};
  at::Tensor uniforms;
  if (options_.temperature > 0) {
    const at::Tensor sequence = s.sequence.unsqueeze(1).expand_as(rows.position);
    uniforms = ops::counter_uniforms(rows.shape.pack(sequence), rows.shape.pack(rows.position),
                                     number_.expand({rows.set.count()}).contiguous(), options_.seed,
                                     Stream::token);
  }
  record.cost.forward_rows += rows.active ? rows.active->count() : batch.rows();
  record.cost.head_rows += rows.set.count();
  return in_context({.batch = batch,
                     .rows = rows.set,
                     .forbidden = forbidden_,
                     .options = options_,
                     .uniforms = uniforms,
                     .keep_context = keep_context},
                    rows.active,
                    [&](const PredictRequest& pass) { return predict(model(), pass); });
}

DeviceLoop::Pending DeviceLoop::launch(int64_t number, bool pending) {
  const PlainDispatch plain;
  const State& s = state_;
  Pending step;
  step.start = std::chrono::steady_clock::now();
  step.live = s.live;
  step.record.step = number;
  // Under an adaptive pace the step before is not read yet: see finish().
  step.record.steps = most_steps(number);

  Bounds most = bounds(pending);
  const Masks m = masks();
  const std::vector<int64_t> steps(s.size(), number);
  const bool keep_context = options_.refresh_every != 1 || policy_->wants_context(steps);
  const Looked rows = looked_at(m, most, may_freeze());
  const Predicted seen = look(rows, keep_context, step.record);
  const auto matrix = [&](const at::Tensor& t) {
    return rows.shape.unpack(t.to(at::kDouble), 0.0);
  };
  const Predictions& flat = seen.predictions;
  const Predictions predictions{rows.shape.unpack(flat.token, 0), matrix(flat.confidence),
                                matrix(flat.max_prob), matrix(flat.margin), matrix(flat.entropy)};
  const PackedBatch batch{s.tokens, s.cu_seqlens};
  Cost cost;
  const CountedDenoiser counted(model(), cost);
  DeviceDecision decision = policy_->decide_on_device({.model = counted,
                                                       .batch = batch,
                                                       .row = rows.row,
                                                       .position = rows.position,
                                                       .valid = rows.valid,
                                                       .predictions = predictions,
                                                       .features = seen.features,
                                                       .place = rows.shape.places(),
                                                       .forbidden = forbidden_,
                                                       .context = context_.get(),
                                                       .eligible = m.eligible,
                                                       .quota = m.quota,
                                                       .sequence = s.sequence,
                                                       .first = s.first,
                                                       .step = number_,
                                                       .steps = s.steps,
                                                       .number = number,
                                                       .most_eligible = most.eligible,
                                                       .most_quota = most.quota,
                                                       .seed = options_.seed,
                                                       .poll = options_.poll});
  decision = checked(*policy_, std::move(decision), rows.valid.sizes(), rows.valid.device());
  step.record.cost += cost;
  write(m, rows, predictions, decision, step);
  state_.before_bounds = std::move(most);
  send(step);
  return step;
}

void DeviceLoop::write(const Masks& m, const Looked& rows, const Predictions& predictions,
                       const DeviceDecision& decision, Pending& step) {
  State& s = state_;
  at::Tensor last;
  if (ends_.defined()) last = at::isin(predictions.token, ends_);
  const at::Tensor count =
      at::minimum(decision.count.defined() ? decision.count : m.quota, m.eligible);
  const auto best = [&](const at::Tensor& score, const at::Tensor& after) {
    return rank_by(score, rows.valid, after).lt(count.unsqueeze(1)) & rows.valid;
  };
  const at::Tensor chosen = best(decision.score, last);
  const at::Tensor by_confidence = best(predictions.confidence, {});
  const at::Tensor& at = rows.set.rows;
  s.tokens.index_copy_(0, at,
                       at::where(rows.shape.pack(chosen), rows.shape.pack(predictions.token),
                                 s.tokens.index_select(0, at)));
  s.current = at::where(m.eligible.gt(0), m.block, s.current);
  s.done = m.done + m.eligible.gt(0).to(at::kLong);
  s.before = m.is_eligible;
  number_.add_(1);

  const at::Tensor influence = decision.influence.defined()
                                   ? decision.influence
                                   : at::full(chosen.sizes(), kNan, decision.score.options());
  const at::Tensor probe = decision.probe.defined() ? decision.probe : influence.eq(influence);
  const auto real = [](const at::Tensor& t) { return t.to(at::kDouble); };
  // In the order of Field.
  step.rows = at::stack({real(rows.position), real(rows.valid), real(chosen),
                         real(predictions.token), predictions.confidence, predictions.entropy,
                         decision.score, influence, real(probe), real(by_confidence)},
                        2);
  step.sequences = at::stack({m.masked.sum(1), m.eligible, count}, 1);
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

}  // namespace tabes
