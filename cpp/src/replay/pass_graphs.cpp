#include "replay/pass_graphs.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

#include "out_of_memory.h"

namespace tabes {
namespace {

// Shapes that are remembered, whether or not there is a graph of them.
constexpr size_t kMostShapes = 4096;

}  // namespace

bool PassGraphs::try_acquire() {
  if (is_taken_.exchange(true, std::memory_order_acquire)) return false;
  if (last_use_) {
    const c10::impl::VirtualGuardImpl device(device_.type());
    last_use_->block(device.getStream(device_));
  }
  return true;
}

void PassGraphs::release() {
  if (!device_.is_cpu()) {
    const c10::impl::VirtualGuardImpl device(device_.type());
    if (!last_use_) last_use_.emplace(device_.type());
    last_use_->record(device.getStream(device_));
  }
  is_taken_.store(false, std::memory_order_release);
}

PassGraphs::Tensors PassGraphs::run(const std::vector<int64_t>& shape, const Tensors& inputs,
                                    const Work& work) {
  if (entries_.size() >= kMostShapes && !entries_.contains(shape)) {
    std::erase_if(entries_, [](const auto& e) { return !e.second.graph; });
  }
  Entry& entry = entries_[shape];
  const bool is_first = entry.used == 0;
  entry.used = ++clock_;
  if (!is_first && !entry.is_eager && !entry.graph) record(entry, inputs, work);
  if (!entry.graph) return work(inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].defined()) entry.inputs[i].copy_(inputs[i], /*non_blocking=*/true);
  }
  entry.graph->replay();
  ++replayed_;
  // Where it wrote them the next graph may write something else.
  Tensors results;
  for (const at::Tensor& t : entry.outputs) results.push_back(t.clone());
  return results;
}

void PassGraphs::Entry::drop() {
  graph.reset();
  outputs.clear();
  inputs.clear();
  uploads = {};
}

void PassGraphs::wait() const {
  if (device_.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device_.type()).synchronizeDevice(device_.index());
}

void PassGraphs::record(Entry& entry, const Tensors& inputs, const Work& work) {
  make_room();
  if (!recorder_) recorder_ = recorder_for(device_.type())(device_);
  entry.inputs.clear();
  const Uploads::Scope scope(entry.uploads);
  try {
    for (const at::Tensor& t : inputs) {
      entry.inputs.push_back(t.defined() ? at::empty_like(t).copy_(t) : t);
    }
    entry.graph = recorder_->record([&](bool recording) {
      if (recording) entry.uploads.seal();
      entry.outputs = work(entry.inputs);
    });
    ++graphs_;
    ++recorded_;
  } catch (const c10::Error& error) {
    entry.is_eager = true;
    entry.drop();
    if (is_out_of_memory(error)) {
      // Then the memory of the others is wanted too.
      forget();
      return;
    }
    TORCH_WARN_ONCE("tabes could not record a pass on ", device_,
                    " and goes on without; cuda_graphs=False does not try. The cause: ",
                    error.what_without_backtrace());
  }
}

void PassGraphs::make_room() {
  if (graphs_ < kMostGraphs) return;
  auto oldest = entries_.end();
  for (auto e = entries_.begin(); e != entries_.end(); ++e) {
    if (e->second.graph && (oldest == entries_.end() || e->second.used < oldest->second.used)) {
      oldest = e;
    }
  }
  wait();
  entries_.erase(oldest);
  --graphs_;
}

void PassGraphs::forget() {
  wait();
  for (auto& [shape, entry] : entries_) entry.drop();
  graphs_ = 0;
  // A pool whose last graph is gone is not used again.
  recorder_.reset();
}

}  // namespace tabes
