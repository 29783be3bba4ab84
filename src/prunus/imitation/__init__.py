"""Which channel classes imitate their whole group best, from second moments alone."""

from prunus.imitation.form import Form, joint_costs, local_form, output_form
from prunus.imitation.forward import Consumer, ForwardTrace, consumers_of, forward_trace
from prunus.imitation.scales import equal_scales, line_scales, refit_scales, repeated_scales
from prunus.imitation.steps import Steps, line_steps, refit_steps, uniform_steps
from prunus.imitation.trace import Trace

__all__ = [
    "Consumer",
    "Form",
    "ForwardTrace",
    "Steps",
    "Trace",
    "consumers_of",
    "equal_scales",
    "forward_trace",
    "joint_costs",
    "line_scales",
    "line_steps",
    "local_form",
    "output_form",
    "refit_scales",
    "refit_steps",
    "repeated_scales",
    "uniform_steps",
]
