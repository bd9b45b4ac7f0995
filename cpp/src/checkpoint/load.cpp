#include <ATen/Context.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cctype>
#include <filesystem>
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

constexpr uint64_t kMaxRevisionBytes = 256;

class FileWeights final : public WeightSource {
 public:
  FileWeights(const Plan& plan, const LoadOptions& options, const std::string& folder)
      : plan_(plan), options_(options), folder_(folder) {}

  void read(const std::string& name, at::Tensor destination) override {
    const auto it = plan_.weights.find(name);
    if (it == plan_.weights.end()) fail(folder_, "has no tensor for the weight " + quote(name));
    const auto& [file, info] = it->second;
    // A token that is never to be predicted has -infinity there.
    read_into(*file, *info, destination, /*minus_infinity=*/name == "head.out.bias");
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

std::string notice_of(const std::string& folder, const Plan& plan) {
  std::string list;
  for (const std::string& head : plan.heads) list += (list.empty() ? "" : ", ") + head;
  return printable(folder) + ": heads without a part in the logits are left out: " + list;
}

// The model that the config describes, and where its weights are. What goes wrong for a model of
// another architecture goes wrong because of that.
std::pair<TransformerConfig, Plan> described(const std::string& folder, const Config& config,
                                             const Family& family, const LoadOptions& options,
                                             const TensorStore& store) {
  try {
    TransformerConfig model = family.parse(config);
    find_special_tokens(folder, config, family, options, model);
    Plan plan = make_plan(model, family, store);
    return {std::move(model), std::move(plan)};
  } catch (const CheckpointError& error) {
    const auto foreign = foreign_architecture(config, family);
    if (!foreign) throw;
    std::string known;
    for (const std::string_view name : family.architectures) {
      known += (known.empty() ? "" : " and ") + std::string(name);
    }
    config.fail_at("architectures",
                   "it names " + quote(*foreign) + ", but of this model_type tabes " + "reads " +
                       known + " (tabes.wrap takes models of " + "transformers): " + error.what());
  }
}

// The model and, while it is laid out, its largest tensor once more.
uint64_t needed_memory(const Plan& plan, const LoadOptions& options) {
  uint64_t all = 0, largest = 0;
  for (const auto& [name, stored] : plan.weights) {
    uint64_t values = 1;
    for (const int64_t size : stored.info->shape) values *= static_cast<uint64_t>(size);
    all += values;
    largest = std::max(largest, values);
  }
  return (all + (options.prepack ? largest : 0)) * c10::elementSize(options.dtype);
}

std::shared_ptr<const Denoiser> load_folder(const std::string& folder, const LoadOptions& options) {
  const std::string config_file = folder + "/config.json";
  const Config config(read_text(config_file, kMaxConfigBytes), config_file);
  TensorStore store(folder);
  store.tidy(options.ignore, telltales());
  const Family& family = detect_family(config, store);
  const auto [model, plan] = described(folder, config, family, options, store);
  if (options.notice && !plan.heads.empty()) options.notice(notice_of(folder, plan));
  if (options.device.is_cpu()) require_memory(needed_memory(plan, options));
  FileWeights weights(plan, options, folder);
  auto made = make_transformer(model, weights, options.device, options.dtype, options.prepack);
  trim_memory();
  return made;
}

}  // namespace

std::string checkpoint_folder(const std::string& directory) {
  std::string folder = directory;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  check_folder(folder);
  // Whoever looks for the files finds this folder first.
  constexpr std::string_view kSnapshots = "/snapshots";
  if (folder.ends_with(kSnapshots) && !entry_exists(folder + "/config.json")) {
    folder.resize(folder.size() - kSnapshots.size());
  }
  const std::string snapshots = folder + std::string(kSnapshots);
  if (entry_exists(folder + "/config.json") || !entry_exists(snapshots)) return folder;
  const std::string main = folder + "/refs/main";
  if (entry_exists(main)) {
    std::string revision = read_text(main, kMaxRevisionBytes);
    while (!revision.empty() && std::isspace(static_cast<unsigned char>(revision.back())) != 0) {
      revision.pop_back();
    }
    const bool plain = !revision.empty() && revision.find('/') == revision.npos &&
                       !revision.starts_with('.') && !has_control_characters(revision);
    if (!plain) fail(main, "names no snapshot but " + quote(revision));
    std::string chosen = snapshots;
    chosen += "/" + revision;
    check_folder(chosen);
    return chosen;
  }
  std::vector<std::string> all;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(snapshots, error)) {
    all.push_back(entry.path().string());
  }
  if (all.size() == 1) return all.front();
  std::sort(all.begin(), all.end());
  fail(folder, all.empty() ? "is a folder of the Hub's cache without a snapshot: download again"
                           : "holds " + std::to_string(all.size()) +
                                 " snapshots: pass one of them, " + quote(all.front()) + ", say");
}

std::shared_ptr<const Denoiser> load(const std::string& directory, const LoadOptions& options) {
  check_device(options.device);
  enter(options.device);
  // Weights made under a caller's inference mode could never be part of a gradient computation.
  const c10::InferenceMode inference(false);
  const at::NoGradGuard no_grad;
  const std::string folder = checkpoint_folder(directory);
  return within_memory([&] { return load_folder(folder, options); },
                       [&] {
                         return text(printable(folder), ": not enough memory to load the model on ",
                                     options.device, " in ", options.dtype,
                                     c10::elementSize(options.dtype) > 2
                                         ? ": load it in bfloat16, or free some"
                                         : ": free some, or load it on another device");
                       });
}

}  // namespace tabes
