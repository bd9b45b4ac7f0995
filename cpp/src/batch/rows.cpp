#include "batch/rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "batch/uploads.h"
#include "messages.h"

namespace tabes {
bool is_token_row(const at::Tensor& tokens) {
  return tokens.defined() && tokens.dim() == 1 && tokens.layout() == at::kStrided &&
         !tokens.is_meta() && at::isIntegralType(tokens.scalar_type(), false);
}

std::vector<HostTokens> checked_tokens(const ModelInfo& info,
                                       const std::vector<at::Tensor>& sequences) {
  if (sequences.empty()) refuse("the batch is empty; pass at least one sequence of token ids");
  std::vector<HostTokens> result;
  result.reserve(sequences.size());
  for (size_t b = 0; b < sequences.size(); ++b) {
    const at::Tensor& given = sequences[b];
    if (!is_token_row(given)) {
      refuse("sequence ", b, " must be a 1-D tensor of integer token ids");
    }
    const int64_t length = given.size(0);
    if (length == 0) refuse("sequence ", b, " is empty");
    if (length > info.max_length) {
      refuse("sequence ", b, " has ", length, " tokens but the model takes at most ",
             info.max_length, "; shorten the prompt or gen_length");
    }
    const at::Tensor tokens = given.to(at::kCPU, at::kLong).contiguous();
    const int64_t* data = tokens.const_data_ptr<int64_t>();
    const auto bad =
        std::find_if(data, data + length, [&](int64_t t) { return t < 0 || t >= info.vocab_size; });
    if (bad != data + length) {
      refuse("token ", *bad, " at position ", bad - data, " of sequence ", b,
             " is outside the vocabulary of ", info.vocab_size);
    }
    result.emplace_back(data, data + length);
  }
  return result;
}

at::Tensor to_tensor(const std::vector<int64_t>& values, at::Device device) {
  return upload(values, at::kLong, device);
}

PackedBatch pack(const std::vector<const HostTokens*>& sequences, at::Device device) {
  PackedBatch batch;
  batch.cu_seqlens = {0};
  HostTokens tokens;
  for (const HostTokens* s : sequences) {
    tokens.insert(tokens.end(), s->begin(), s->end());
    batch.cu_seqlens.push_back(static_cast<int64_t>(tokens.size()));
  }
  batch.tokens = to_tensor(tokens, device);
  return batch;
}

RowSet row_set(const std::vector<int64_t>& rows, std::vector<int64_t> cu_rows, at::Device device) {
  const at::Tensor sent = to_tensor(rows, device);
  if (device.is_cpu()) return {sent, std::move(cu_rows), {}, sent};
  const at::Tensor host = at::empty({static_cast<int64_t>(rows.size())}, at::kLong);
  std::copy(rows.begin(), rows.end(), host.data_ptr<int64_t>());
  return {sent, std::move(cu_rows), {}, host};
}

RowSet all_rows(const PackedBatch& batch) {
  const at::Tensor host = at::arange(batch.rows(), at::kLong);
  const bool on_cpu = batch.tokens.is_cpu();
  return {
      on_cpu ? host : at::arange(batch.rows(), batch.tokens.options()), batch.cu_seqlens, {}, host};
}

RowSet predicting(const PackedBatch& batch, const RowSet& rows) {
  std::vector<int64_t> first(rows.count());
  for (int64_t b = 0; b < batch.size(); ++b) {
    std::fill(first.begin() + rows.cu_rows[b], first.begin() + rows.cu_rows[b + 1],
              batch.cu_seqlens[b]);
  }
  if (rows.host.defined()) {
    const int64_t* row = rows.host.const_data_ptr<int64_t>();
    for (size_t i = 0; i < first.size(); ++i) first[i] = std::max(first[i], row[i] - 1);
    return row_set(first, rows.cu_rows, rows.rows.device());
  }
  return {(rows.rows - 1).maximum(to_tensor(first, rows.rows.device())), rows.cu_rows};
}

}  // namespace tabes
