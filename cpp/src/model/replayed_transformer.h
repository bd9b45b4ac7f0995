// What replayed passes of a transformer work on, kept with the model from decode to decode.
#pragma once

#include <memory>

#include "model/transformer.h"
#include "replay/pass_graphs.h"

namespace tabes {

struct TransformerReplay {
  explicit TransformerReplay(at::Device device) : graphs(device) {}

  PassGraphs graphs;
  // Keys and values of a frozen context are written in place, so they need memory of fixed address:
  // this, whose first rows serve for batches of any shape, and which context has it.
  FrozenContext memory;
  std::weak_ptr<const void> owner;
};

}  // namespace tabes
