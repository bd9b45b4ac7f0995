// The tensors of a checkpoint folder, wherever in it they are.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"

namespace tabes::checkpoint {

// Tensor name and shard file name of every entry of a model.safetensors.index.json. Throws
// CheckpointError unless all shard names are plain names of safetensors files.
using WeightMap = std::vector<std::pair<std::string, std::string>>;
WeightMap parse_index(std::string_view text, const std::string& file);

struct StoredTensor {
  const SafetensorsFile* file;
  const TensorInfo* info;
};

class TensorStore {
 public:
  // Opens model.safetensors, or else the shards that model.safetensors.index.json names, or else
  // all of model-00001-of-0000N.safetensors. Checks all headers and that index and shards agree.
  // Throws CheckpointError.
  explicit TensorStore(const std::string& folder);

  // Leaves out the tensors whose names fit one of `patterns`, in which "*" stands for any text, and
  // drops a prefix that ends in a dot if all others have it and one is it and then one of `known`.
  // Patterns may have the prefix or not. Throws InputError for a pattern that fits nothing.
  void tidy(const std::vector<std::string>& patterns, const std::vector<std::string_view>& known);

  const StoredTensor* find(std::string_view name) const;  // null if there is none
  const std::map<std::string_view, StoredTensor>& tensors() const { return tensors_; }
  // The pattern by which this tensor was left out, empty if it was not.
  std::string_view left_out(std::string_view name) const;
  // What errors about the whole name: the single tensor file or the index.
  const std::string& path() const { return path_; }

 private:
  void add(const SafetensorsFile& file);
  void open_shards();
  bool open_numbered_shards();

  std::string folder_;
  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string_view, StoredTensor> tensors_;          // names live in files_
  std::map<std::string_view, std::string, std::less<>> out_;  // name and pattern
};

}  // namespace tabes::checkpoint
