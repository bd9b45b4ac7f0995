#include <ATen/Context.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <utility>

#include "checkpoint/checks.h"
#include "checkpoint/config.h"
#include "checkpoint/families.h"
#include "checkpoint/file.h"
#include "checkpoint/plan.h"
#include "checkpoint/special_tokens.h"
#include "checkpoint/tensor_read.h"
#include "checkpoint/tensor_store.h"
#include "forked.h"
#include "messages.h"
#include "model/device.h"
#include "out_of_memory.h"
#include "tabes/checkpoint.h"
#include "tabes/error.h"
#include "tabes/transformer.h"

namespace tabes {
namespace {

using namespace checkpoint;  // NOLINT(google-build-using-namespace): the reader's own parts

// Gives freed memory back to the system, as often as kTrimBytes have been read. Reading and
// reordering weights frees blocks of many sizes, which glibc keeps: without this a load was seen to
// hold a fifth more than model and largest tensor.
constexpr uint64_t kTrimBytes = uint64_t{8} << 20;

void trim_memory() {
#if defined(__GLIBC__)
  ::malloc_trim(0);
#endif
}

class FileWeights final : public WeightSource {
 public:
  FileWeights(const Plan& plan, const LoadOptions& options, const std::string& folder)
      : plan_(plan), options_(options), folder_(folder) {}

  void read(const std::string& name, at::Tensor destination) override {
    const auto it = plan_.weights.find(name);
    if (it == plan_.weights.end()) fail(folder_, "has no tensor for the weight " + quote(name));
    const auto& [file, info] = it->second;
    read_into(*file, *info, destination);
    done_ += info->bytes();
    if (done_ - trimmed_ >= kTrimBytes) {
      trim_memory();
      trimmed_ = done_;
    }
    if (options_.progress) {
      options_.progress(static_cast<int64_t>(done_), static_cast<int64_t>(plan_.bytes));
    }
  }

 private:
  const Plan& plan_;
  const LoadOptions& options_;
  const std::string& folder_;
  uint64_t done_ = 0, trimmed_ = 0;
};

std::shared_ptr<const Denoiser> load_folder(const std::string& folder, const LoadOptions& options) {
  check_folder(folder);
  const std::string config_file = folder + "/config.json";
  const Config config(read_text(config_file, kMaxConfigBytes), config_file);
  const TensorStore store(folder);
  const Family& family = detect_family(config, store);
  TransformerConfig model = family.parse(config);
  find_special_tokens(folder, config, family, options, model);
  const Plan plan = make_plan(model, family, store);
  FileWeights weights(plan, options, folder);
  auto made = make_transformer(model, weights, options.device, options.dtype, options.prepack);
  trim_memory();
  return made;
}

}  // namespace

std::shared_ptr<const Denoiser> load(const std::string& directory, const LoadOptions& options) {
  check_device(options.device);
  enter(options.device);
  // Weights made under a caller's inference mode could never be part of a gradient computation.
  const c10::InferenceMode inference(false);
  const at::NoGradGuard no_grad;
  std::string folder = directory;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  return within_memory(
      [&] { return load_folder(folder, options); },
      [&] { return text(folder, ": not enough memory to load the model on ", options.device); });
}

}  // namespace tabes
