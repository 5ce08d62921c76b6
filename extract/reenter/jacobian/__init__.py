"""How states that come later depend on those before, averaged over problems: matrices a lens reads with."""

from extract.reenter.jacobian.mean import JacobianPlan, jacobian_plan, mean_jacobian

__all__ = ["JacobianPlan", "jacobian_plan", "mean_jacobian"]
