// The three matrix products of a tile, for the rows of one peer, through the BLAS that torch carries.
//
//   similarities     S   = Ẑ_r Ẑ_cᵀ              [block_r, block_c]
//   add_to_rows      dẐ_r += W Ẑ_c               [block_r, width]
//   add_to_keys      dẐ_cᵀ += Ẑ_rᵀ W             [width, block_c]
//
// None of them transposes anything: next to the rows lie panels, one a block, in which a block is transposed, and the
// sums over the keys' side are kept in panels too.
//
// float: oneDNN's brgemm, 165 to 184 GFLOP/s on one core (Sapphire Rapids, AVX-512) at every tile size from 64 to 512,
// where sgemm reaches 140 to 177 with a transposed operand. bfloat16: the same brgemm where there is AMX; without it
// bfloat16 products (AVX512-BF16) run at half the speed of float ones, 89 to 95 GFLOP/s, so the caller widens the rows.
// double, and float where brgemm does not exist: at::mm.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "buffer.h"

namespace dogo_fast {

// A block of rows of a view: its first row in the padded buffer, and how many rows it has, padding included.
struct Block {
  int64_t start;
  int64_t rows;
};

// The rows of one peer in the layouts that the products read; T is the type of the sums, float or double.
template <typename T>
class Operand {
 public:
  // rows [padded, width] of T or bfloat16; panels [layouts, padded, width], written by make_panels: one layout, or three
  // for the backward pass in bfloat16, whose products want pairs (VNNI) and an even width.
  Operand(const at::Tensor& rows, const at::Tensor& panels);

  int64_t width() const { return width_; }
  void make_panels(Block block) const;

  void similarities(Block rows, Block keys, T* similarities) const;
  // Give the weights of a tile in the layouts that the next two read.
  struct Weights {
    const T* plain;
    const at::BFloat16* narrow;
    const at::BFloat16* pairs;
  };
  Weights prepare(const T* weights, Block rows, Block keys, Buffer<at::BFloat16>& scratch) const;
  void add_to_rows(const Weights& weights, Block rows, Block keys, T* sums) const;
  void add_to_keys(const Weights& weights, Block rows, Block keys, T* sums) const;

  // Give back the processor's tile registers, which a thread that multiplied bfloat16 holds.
  void release() const;

  // Row i of the padded buffer, widened.
  void load_row(int64_t i, T* row) const;

 private:
  const T* row(int64_t i) const { return rows_.const_data_ptr<T>() + i * width_; }
  const at::BFloat16* narrow_row(int64_t i) const { return rows_.const_data_ptr<at::BFloat16>() + i * width_; }
  template <typename E>
  E* panel(int64_t layout, Block block) const {
    return panels_.mutable_data_ptr<E>() + layout * panels_.stride(0) + block.start * width_;
  }

  at::Tensor rows_;
  at::Tensor panels_;
  int64_t width_;
  bool narrow_;
};

}  // namespace dogo_fast
