"""What every device promises, as cases that run on each kind of device alike.

A case is named after its line of the contract. Where a lent descriptor cannot do what the line says, because no data
call is trapped, or the kernel's device does otherwise, the line has a case of its own in that column; nowhere else.
`check_device` runs them all; ``device_cases`` lists them, for pytest's parametrize.
"""

# The order is the contract's.
import ginnel.testing.fault_cases
import ginnel.testing.io_cases  # noqa: F401
from ginnel.testing.cases import KERNEL as KERNEL
from ginnel.testing.cases import LENT as LENT
from ginnel.testing.cases import Case as Case
from ginnel.testing.cases import check_device as check_device
from ginnel.testing.cases import device_cases as device_cases
