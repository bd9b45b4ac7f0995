// Which tokens have a part of their own: mask, ends, padding, and those that are no text.
// Checkpoints state them in many places or not at all.
#pragma once

#include <string>

#include "checkpoint/config.h"
#include "checkpoint/families.h"
#include "tabes/checkpoint.h"

namespace tabes::checkpoint {

// Fills in all special tokens of `model`, the rest of which is known, from the files in `folder`,
// in the order that load() promises. Throws InputError if an option names no token of the model,
// CheckpointError if a file does, or if no mask token is found.
void find_special_tokens(const std::string& folder, const Config& config, const Family& family,
                         const LoadOptions& options, TransformerConfig& model);

}  // namespace tabes::checkpoint
