// Reading Hugging Face checkpoint folders: config.json plus safetensors, in one file or sharded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "tabes/denoiser.h"
#include "tabes/export.h"

namespace tabes {

struct LoadOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  // Overrides config.json where it has no (or a wrong) mask token, as older BERT checkpoints do.
  std::optional<int64_t> mask_token_id;
  // On x86 CPUs reorder each weight for oneDNN as it is read, and its transpose when the first
  // influence score needs it: faster products, but steering then holds every weight twice. Off:
  // one plain copy serves both.
  bool prepack = true;
  // Called after each tensor with the bytes read so far and in all; it may throw to stop.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Loads the model in the folder `directory`. Weights are read tensor by tensor into their final
// place: beside the model itself at most one tensor is in memory. Pickle files are never opened.
// Throws CheckpointError naming the file, the rule it breaks and, where known, the tensor.
TABES_API std::shared_ptr<const Denoiser> load(const std::string& directory,
                                               const LoadOptions& options = {});

}  // namespace tabes
