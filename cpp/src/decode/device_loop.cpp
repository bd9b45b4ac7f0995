#include "decode/device_loop.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace tabes {
namespace {

using Clock = std::chrono::steady_clock;

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
    width = std::max(width, c.length());
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
      row.push_back(s.cu_seqlens[b] + std::min(i, c.length() - 1));
      inside.push_back(i < c.length());
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
  if (options_.confidence_eos_eot_inf && !info_.eos_token_ids.empty()) {
    ends_ = send(info_.eos_token_ids);
  }
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
      finished_[c->place] = s.tokens.narrow(0, from, c->length());
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
      before.cost += pending->record.cost;
    }
    pending.reset();
  };
  within_step(0, [&] { open(); });
  for (int64_t number = 0; unfinished(); ++number) {
    if (options_.poll) options_.poll();
    Pending step = within_step(number, [&] {
      keep_unfinished();
      return launch(number, pending.has_value());
    });
    if (pace_ == Pace::quota) {
      for (Canvas* c : state_.live) c->schedule.advance(c->schedule.quota());
    }
    if (pending) within_step(number, read);
    pending = std::move(step);
  }
  if (pending) within_step(pending->record.step, read);
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
