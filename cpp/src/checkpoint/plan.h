// Which tensor of the files fills which weight of the model, settled before anything is allocated.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/families.h"
#include "checkpoint/tensor_store.h"
#include "tabes/transformer.h"

namespace tabes::checkpoint {

struct TensorSpec {
  std::string name;  // our name
  std::vector<int64_t> shape;
};

// The tensors a model of this description is made of, as listed above WeightSource.
std::vector<TensorSpec> tensor_specs(const TransformerConfig& model);

struct Plan {
  std::map<std::string, StoredTensor> weights;  // by our name
  uint64_t bytes = 0;                           // of all of them in the files
  std::vector<std::string> heads;               // left out: names of their modules
};

// Throws CheckpointError if a tensor is missing, has another shape than the description asks for,
// or has no part in the model: files of another architecture must not pass. Throws InputError if a
// tensor is missing because the caller had it left out.
Plan make_plan(const TransformerConfig& model, const Family& family, const TensorStore& store);

}  // namespace tabes::checkpoint
