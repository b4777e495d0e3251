"""What the variables at the top of a dashboard are, and how they narrow a selector."""

from collections.abc import Sequence

from deploy.monitoring.panels import JSON, datasource_variable, label_variable
from deploy.monitoring.promql import Scope

TARGET = Scope(matchers=('job=~"$job"', 'instance=~"$instance"'))
"""For what a whole process has: its HTTP, its images, itself."""
ALERT = Scope(matchers=('job=~"$job"', 'instance=~"$instance|"'))
"""For alerts: those on a whole job have no instance."""
MODEL = Scope(matchers=(*TARGET.matchers, 'model=~"$model"'))
"""For what belongs to a served model."""
WORKER = Scope(matchers=(*MODEL.matchers, 'worker=~"$worker"'))
"""For what belongs to a worker."""
GPU = Scope(matchers=(*TARGET.matchers, 'gpu=~"$gpu"'))
"""For what the driver tells of a GPU, whoever uses it."""

PAGE: Sequence[JSON] = (
    datasource_variable(),
    label_variable("job", series="laneway_model_ready"),
    label_variable("instance", series='laneway_model_ready{job=~"$job"}'),
    label_variable("model", series='laneway_model_ready{job=~"$job", instance=~"$instance"}'),
)
"""Variables that every dashboard has; they are kept from one to the next."""
DRILL_DOWN: Sequence[JSON] = (
    *PAGE,
    label_variable("worker", series=MODEL.select("laneway_worker_ready")),
    label_variable("gpu", series=TARGET.select("laneway_gpu_info")),
)
