#include "decode/canvas.h"

#include <algorithm>

namespace tabes {

Layout lay_out(const std::vector<Canvas*>& canvases, const ModelInfo& info, bool with_waiting) {
  Layout layout;
  std::vector<const HostTokens*> tokens;
  std::vector<int64_t> rows, waiting, cu_rows{0}, cu_waiting{0};
  int64_t offset = 0;
  for (const Canvas* c : canvases) {
    const int64_t length = static_cast<int64_t>(c->tokens.size());
    for (int64_t i = c->schedule.begin(); i < (with_waiting ? length : c->schedule.end()); ++i) {
      if (c->tokens[i] != info.mask_token_id) continue;
      if (i < c->schedule.end()) {
        rows.push_back(offset + i);
        layout.positions.push_back(i);
      } else {
        waiting.push_back(offset + i);
      }
    }
    cu_rows.push_back(static_cast<int64_t>(rows.size()));
    cu_waiting.push_back(static_cast<int64_t>(waiting.size()));
    offset += length;
    tokens.push_back(&c->tokens);
  }
  layout.batch = pack(tokens, info.device);
  layout.eligible = row_set(rows, std::move(cu_rows), info.device);
  layout.waiting = row_set(waiting, std::move(cu_waiting), info.device);
  return layout;
}

RowSet active_rows(const std::vector<Canvas*>& canvases, const PackedBatch& batch,
                   const RowSet& wanted, const ModelInfo& info) {
  const at::Tensor host = wanted.on_host();
  const int64_t* row = host.const_data_ptr<int64_t>();
  std::vector<int64_t> rows, cu_rows{0};
  for (size_t b = 0; b < canvases.size(); ++b) {
    const int64_t begin = batch.cu_seqlens[b];
    std::vector<int64_t> own(row + wanted.cu_rows[b], row + wanted.cu_rows[b + 1]);
    const size_t predicted = own.size();
    for (size_t i = 0; info.logit_shift && i < predicted; ++i) {
      own.push_back(std::max(begin, own[i] - 1));
    }
    for (const int64_t i : canvases[b]->stale) own.push_back(begin + i);
    std::sort(own.begin(), own.end());
    own.erase(std::unique(own.begin(), own.end()), own.end());
    rows.insert(rows.end(), own.begin(), own.end());
    cu_rows.push_back(static_cast<int64_t>(rows.size()));
  }
  return row_set(rows, std::move(cu_rows), info.device);
}

RowSet merged(const RowSet& first, const RowSet& second, std::vector<char>* second_part) {
  const at::Tensor a = first.on_host(), b = second.on_host();
  const int64_t *x = a.const_data_ptr<int64_t>(), *y = b.const_data_ptr<int64_t>();
  std::vector<int64_t> rows, cu_rows{0};
  if (second_part) second_part->clear();
  for (size_t s = 0; s + 1 < first.cu_rows.size(); ++s) {
    int64_t i = first.cu_rows[s], j = second.cu_rows[s];
    while (i < first.cu_rows[s + 1] || j < second.cu_rows[s + 1]) {
      const bool from_second =
          i == first.cu_rows[s + 1] || (j < second.cu_rows[s + 1] && y[j] < x[i]);
      rows.push_back(from_second ? y[j++] : x[i++]);
      if (second_part) second_part->push_back(from_second);
    }
    cu_rows.push_back(static_cast<int64_t>(rows.size()));
  }
  return row_set(rows, std::move(cu_rows), first.rows.device());
}

}  // namespace tabes
