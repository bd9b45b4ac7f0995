// Whole numbers on their way from the host to a device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace tabes {

// A tensor [n] of `type` (int64 or int32) on `device`; the host does not wait for the copy. Inside
// an Uploads::Scope one that was sent before is given again; do not write to it.
at::Tensor upload(const std::vector<int64_t>& values, at::ScalarType type, at::Device device);

// What was sent, kept. A recorded pass repeats what the device did, not what the host did: numbers
// that the host sent must stay where they were, and while it is recorded none may be sent.
class Uploads {
 public:
  // From now on an upload() of something new throws c10::Error.
  void seal() { sealed_ = true; }

  // In this thread, while it lives, upload() goes through `uploads`.
  class Scope {
   public:
    explicit Scope(Uploads& uploads);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Uploads* outer_;
  };

 private:
  friend at::Tensor upload(const std::vector<int64_t>&, at::ScalarType, at::Device);

  std::map<std::pair<at::ScalarType, std::vector<int64_t>>, at::Tensor> sent_;
  bool sealed_ = false;
};

}  // namespace tabes
