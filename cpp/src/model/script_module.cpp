// TorchScript modules as denoisers. Apart from module_denoiser.cpp for the weight of its headers.
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <string_view>

#include "messages.h"
#include "out_of_memory.h"
#include "plain_dispatch.h"
#include "tabes/module_denoiser.h"

namespace tabes {

namespace {

// TorchScript has several kinds of errors of its own. Memory that runs out is not among them.
template <typename Work>
auto translated(const std::string& what, Work&& work) {
  const auto say = [&](std::string_view why) -> std::string {
    return text(what, why.substr(0, std::min<size_t>(why.size(), 2000)));
  };
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& e) {
    if (is_out_of_memory(e)) throw;
    throw InputError(say(e.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {
    throw InputError(say(e.what()));
  }
}

}  // namespace

std::shared_ptr<const Denoiser> make_module(const torch::jit::Module& module,
                                            const at::Tensor& embedding_table, ModelInfo info) {
  torch::jit::Module own = module;
  own.eval();
  if (info.family.empty()) info.family = "torchscript";
  if (info.parameters == 0) {
    for (const at::Tensor& p : own.parameters()) info.parameters += p.numel();
  }
  // The graph executor counts its runs, so the call is not const; it is safe from several threads.
  auto function = [own](const ModuleCall& call) {
    torch::jit::Module callee = own;
    const c10::IValue out = translated("the TorchScript module failed: ",
                                       [&] { return callee.forward({call.embeddings}); });
    if (out.isTensor()) return out.toTensor();
    if (out.isTuple()) {
      const auto& parts = out.toTupleRef().elements();
      if (!parts.empty() && parts[0].isTensor()) return parts[0].toTensor();
    }
    refuse("the TorchScript module returned ", out.tagKind(),
           "; its forward must return the logits, alone or first in a tuple");
  };
  return std::make_shared<ModuleDenoiser>(std::move(info), embedding_table, std::move(function));
}

std::shared_ptr<const Denoiser> load_module(const std::string& path,
                                            const at::Tensor& embedding_table, ModelInfo info) {
  const OpenDispatch open(/*grad=*/false);
  if (!embedding_table.defined()) refuse("the embedding table is missing");
  const auto read = [&] {
    return translated(path + " cannot be read as a TorchScript module: ",
                      [&] { return torch::jit::load(path, embedding_table.device()); });
  };
  return make_module(
      within_memory(read, [&] { return text("out of memory for the module ", path); }),
      embedding_table, std::move(info));
}

}  // namespace tabes
