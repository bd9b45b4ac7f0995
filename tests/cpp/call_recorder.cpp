#include "call_recorder.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <vector>

namespace tabes {
namespace {

constexpr auto kKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

struct Call {
  c10::OperatorHandle op;
  std::vector<c10::IValue> arguments;
  std::vector<at::Tensor> results;  // memory of its own that its results went to
};

struct Recording {
  std::vector<Call> calls;
  std::vector<at::Tensor> made;  // all of `results`
};

thread_local Recording* recording = nullptr;
int recordings_made = 0;

const void* memory_of(const at::Tensor& t) {
  return t.storage().unsafeGetStorageImpl();
}

// The tensors among some values, those in lists too.
std::vector<at::Tensor> tensors_in(c10::ArrayRef<c10::IValue> values) {
  std::vector<at::Tensor> found;
  for (const c10::IValue& v : values) {
    if (v.isTensor()) found.push_back(v.toTensor());
    if (v.isTensorList()) {
      for (const at::Tensor& t : v.toTensorVector()) found.push_back(t);
    }
  }
  return found;
}

// Of the results of a call, those in memory of their own, not its arguments'.
std::vector<at::Tensor> made_by(c10::ArrayRef<c10::IValue> arguments,
                                c10::ArrayRef<c10::IValue> results) {
  std::set<const void*> known;
  for (const at::Tensor& t : tensors_in(arguments)) {
    if (t.has_storage()) known.insert(memory_of(t));
  }
  std::vector<at::Tensor> made;
  for (const at::Tensor& t : tensors_in(results)) {
    if (t.has_storage() && !known.contains(memory_of(t))) made.push_back(t);
  }
  return made;
}

void note(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard once(kKey);
  const std::string& name = op.schema().name();
  for (const char* reads : {"aten::_local_scalar_dense", "aten::item", "aten::nonzero",
                            "aten::equal", "aten::is_nonzero", "aten::masked_select"}) {
    TORCH_CHECK(name != reads, name, " reads a number while a pass is recorded");
  }
  const auto inputs = static_cast<int64_t>(op.schema().arguments().size());
  Call call{op, {stack->end() - inputs, stack->end()}, {}};
  op.callBoxed(stack);
  const auto outputs = static_cast<int64_t>(op.schema().returns().size());
  call.results =
      made_by(call.arguments, std::vector<c10::IValue>(stack->end() - outputs, stack->end()));
  recording->made.insert(recording->made.end(), call.results.begin(), call.results.end());
  // A view of what was there needs no repetition.
  if (call.results.empty() && !op.schema().is_mutable()) return;
  recording->calls.push_back(std::move(call));
}

class CallGraph;

struct Pool {
  std::set<CallGraph*> graphs;
  // How often recordings hold each tensor, by memory.
  std::map<const void*, std::map<at::TensorImpl*, size_t>> held;

  bool somebody_else_has(const at::Tensor& t) const {
    const auto& tensors = held.at(memory_of(t));
    if (t.storage().use_count() > tensors.size()) return true;
    return std::any_of(tensors.begin(), tensors.end(), [](const auto& one) {
      return c10::raw::intrusive_ptr::use_count(one.first) > one.second;
    });
  }
};

class CallGraph final : public Graph {
 public:
  CallGraph(std::shared_ptr<Pool> pool, Recording own)
      : pool_(std::move(pool)), own_(std::move(own)) {
    pool_->graphs.insert(this);
    std::set<const void*> made;
    for (const at::Tensor& t : own_.made) made.insert(memory_of(t));
    for (const Call& call : own_.calls) {
      for (const at::Tensor& t : tensors_in(call.arguments)) {
        // Single numbers go to a kernel by value.
        if (!t.has_storage() || t.dim() == 0 || made.contains(memory_of(t))) continue;
        given_.push_back(t);
        // As an argument and in given_.
        pool_->held[memory_of(t)][t.unsafeGetTensorImpl()] += 2;
      }
    }
  }
  ~CallGraph() override {
    pool_->graphs.erase(this);
    for (const at::Tensor& t : given_) {
      auto& tensors = pool_->held[memory_of(t)];
      if ((tensors[t.unsafeGetTensorImpl()] -= 2) == 0) tensors.erase(t.unsafeGetTensorImpl());
    }
  }

  void replay() override {
    // A graph holds addresses: what was there must be there.
    for (const at::Tensor& t : given_) {
      TORCH_CHECK(pool_->somebody_else_has(t),
                  "a graph is replayed on memory that nobody has any more");
    }
    for (CallGraph* other : pool_->graphs) {
      if (other != this) other->spoil();
    }
    for (const Call& call : own_.calls) {
      torch::jit::Stack stack = call.arguments;
      call.op.callBoxed(&stack);
      const std::vector<at::Tensor> again = made_by(call.arguments, stack);
      TORCH_CHECK(again.size() == call.results.size(), call.op.schema().name());
      for (size_t i = 0; i < again.size(); ++i) {
        TORCH_CHECK(again[i].sizes() == call.results[i].sizes(), call.op.schema().name(),
                    " has another shape when it is repeated");
        call.results[i].copy_(again[i]);
      }
    }
  }

 private:
  void spoil() {
    for (const at::Tensor& t : own_.made) {
      if (t.is_floating_point()) {
        t.fill_(std::numeric_limits<double>::quiet_NaN());
      } else {
        t.fill_(t.scalar_type() == at::kBool ? 1 : 77);
      }
    }
  }

  std::shared_ptr<Pool> pool_;
  Recording own_;
  std::vector<at::Tensor> given_;  // arguments in memory that was not made by the recording
};

class CallRecorder final : public GraphRecorder {
 public:
  std::unique_ptr<Graph> record(const std::function<void(bool recording)>& work) override {
    work(false);
    Recording own;
    struct Noting {
      explicit Noting(Recording* to) { recording = to; }
      ~Noting() { recording = nullptr; }
    };
    {
      const Noting noting(&own);
      const c10::impl::IncludeDispatchKeyGuard mode(kKey);
      work(true);
    }
    ++recordings_made;
    return std::make_unique<CallGraph>(pool_, std::move(own));
  }

 private:
  std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
};

}  // namespace

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&note>());
}

CallRecorderScope::CallRecorderScope() : panels_(at::globalContext().userEnabledMkldnn()) {
  recordings_made = 0;
  at::globalContext().setUserEnabledMkldnn(false);
  register_recorder(c10::DeviceType::CPU, [](c10::Device) -> std::unique_ptr<GraphRecorder> {
    return std::make_unique<CallRecorder>();
  });
}

CallRecorderScope::~CallRecorderScope() {
  at::globalContext().setUserEnabledMkldnn(panels_);
  register_recorder(c10::DeviceType::CPU, nullptr);
}

int CallRecorderScope::recordings() {
  return recordings_made;
}

}  // namespace tabes
