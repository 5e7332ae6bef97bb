# Alarms on what the services can't see of themselves: the brokers' disks and replicas, the store's memory. What fraudline
# measures is Prometheus' affair (infra/prometheus).

locals {
  alarms = merge(
    { kafka-disk = {
      description = "A broker's disk is fuller than 80 %. Above 100 % it stops, and with it the scorers: grow it, or keep topics shorter."
      namespace   = "AWS/Kafka"
      metric      = "KafkaDataLogsDiskUsed"
      statistic   = "Maximum"
      threshold   = 80
      dimensions  = { "Cluster Name" = var.kafka_cluster_name }
      }
      kafka-offline = {
        description = "Partitions without a leader: their events wait. See the brokers' state and their logs."
        namespace   = "AWS/Kafka"
        metric      = "OfflinePartitionsCount"
        statistic   = "Maximum"
        threshold   = 0
        dimensions  = { "Cluster Name" = var.kafka_cluster_name }
      }
      kafka-controller = {
        description = "No broker is the cluster's controller: topics and leaders can't change."
        namespace   = "AWS/Kafka"
        metric      = "ActiveControllerCount"
        statistic   = "Maximum"
        comparison  = "LessThanThreshold"
        threshold   = 1
        dimensions  = { "Cluster Name" = var.kafka_cluster_name }
      }
    },
    merge([for node in var.redis_member_clusters : {
      "${node}-memory" = {
        description = "Redis node ${node} is fuller than 75 %. Full, it refuses writes and the scorers pause: add shards, or a larger node type."
        namespace   = "AWS/ElastiCache"
        metric      = "DatabaseMemoryUsagePercentage"
        statistic   = "Maximum"
        threshold   = 75
        dimensions  = { CacheClusterId = node }
      }
      "${node}-cpu" = {
        description = "Redis node ${node} is busy for more than 75 % of its one thread: lookups slow down. Add shards."
        namespace   = "AWS/ElastiCache"
        metric      = "EngineCPUUtilization"
        statistic   = "Average"
        threshold   = 75
        dimensions  = { CacheClusterId = node }
      }
    }]...),
  )
}

resource "aws_sns_topic" "this" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
}

resource "aws_sns_topic_subscription" "email" {
  for_each  = toset(var.emails)
  topic_arn = aws_sns_topic.this.arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each            = local.alarms
  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = lookup(each.value, "comparison", "GreaterThanThreshold")
  threshold           = each.value.threshold
  period              = 60
  evaluation_periods  = 5
  treat_missing_data  = "missing"
  alarm_actions       = [aws_sns_topic.this.arn]
  ok_actions          = [aws_sns_topic.this.arn]
}
