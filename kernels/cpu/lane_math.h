// Exp on sixteen lanes: the steps of Exp in kernels/numeric.h, hence its bits.
#pragma once

#include <limits>

#include "kernels/numeric.h"

namespace shoal {

template <typename V>
SHOAL_INLINE V Exp(V x) {
  using C = ExpConstants;
  const V one = V::Broadcast(1.0f);
  const V round = V::Broadcast(C::kRound);
  const V shifted = Fma(x, V::Broadcast(C::kInverseLn2), round);
  const V n = shifted - round;
  const V r = Fma(n, V::Broadcast(-C::kLn2Low), Fma(n, V::Broadcast(-C::kLn2High), x));
  V p = V::Broadcast(C::kP4);
  p = Fma(p, r, V::Broadcast(C::kP3));
  p = Fma(p, r, V::Broadcast(C::kP2));
  p = Fma(p, r, V::Broadcast(C::kP1));
  p = Fma(p, r, V::Broadcast(C::kP0));
  p = Fma(p, r, one);
  p = Fma(p, r, one);
  const V inside =
      SelectLessEqual(V::Broadcast(C::kMin), x, AddExponent(p, shifted), V::Broadcast(0.0f));
  return SelectLessEqual(
      x, V::Broadcast(C::kMax), inside, x + V::Broadcast(std::numeric_limits<float>::infinity()));
}

}  // namespace shoal
